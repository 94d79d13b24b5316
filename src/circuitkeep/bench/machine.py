"""What a measurement ran on, without which its seconds mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from circuitkeep import __version__


def find_device(name: str) -> torch.device:
    """The device called `name`: ``cpu``, ``cuda`` or ``cuda:NUMBER``.

    Raises:
        ValueError: If it is none of these, or not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}: choose cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"device={name!r}: torch {torch.__version__} sees "
            f"{'no CUDA device' if count == 0 else f'{count} CUDA device(s)'} here; use device=cpu"
        )
    return device


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Device, processor, threads and the versions of what was timed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": f"{device} ({name})",
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        # torch's own setting; see docs/performance.md.
        "huge pages": "on" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else "off",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "transformer_lens": version("transformer_lens"),
        "circuitkeep": __version__,
    }


def processor() -> str:
    """The processor's model, as the system names it."""
    # Linux tells platform.processor() little or nothing.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
