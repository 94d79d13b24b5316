"""How much memory tensors take at most, on CPU and GPU; and a whole process."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

# M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX of malloc.h.
_KEEP = {-1: -1, -2: 2**28, -4: 0}
_DEFAULT = {-1: 2**17, -2: 0, -4: 2**16}


class PeakMemory:
    """The most bytes that tensors take inside the context, with those that were there before.

    On a GPU what the allocator says; on the CPU every allocation is recorded (which takes time, so
    time something else), and is added to the storages that are alive at the start.

    Args:
        device: Where.
        without: A model that is there and has no part in what is measured; it is not counted.

    Attributes:
        bytes: Once the context has ended.
    """

    def __init__(self, device: torch.device, without: nn.Module | None = None) -> None:
        self.device, self.bytes = device, 0
        others = [] if without is None else [*without.parameters(), *without.buffers()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in others}
        self._without = sum(storages.values())

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._before = alive_bytes()
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._without
            return
        self._profile.__exit__(None, None, None)
        assert self._profile.profiler is not None
        events: Any = self._profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        now = most = 0
        for _, change in sorted(changes, key=lambda change: change[0]):
            now += change
            most = max(most, now)
        self.bytes = self._before + most - self._without


def alive_bytes() -> int:
    """Bytes of all storages of tensors on the CPU that Python can reach, each counted once."""
    found: dict[int, int] = {}
    for value in gc.get_objects():
        # By type: isinstance would wake lazy proxies, and fake tensors hold nothing.
        if type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided:
            for tensor in (value, value.grad if value.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def peak_resident_bytes() -> int:
    """The most memory that this process has had, files that it has mapped included."""
    # `getrusage` would tell of the process that started this one, where that was larger.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


@contextmanager
def kept_by_the_process() -> Iterator[None]:
    """Have glibc keep what is freed, as the allocators of GPUs do, and use it again.

    Otherwise every large tensor is new memory, a page at a time: a quarter of a training step's
    processor time and more, and as unsteady as the machine's memory. torch's memory is aligned,
    and so comes back only with ``THP_MEM_ALLOC_ENABLE=1`` in the environment. Other C libraries
    are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    for option, value in _KEEP.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULT.items():
            libc.mallopt(option, value)
