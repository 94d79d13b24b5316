"""What processes send each other in a training step, plain and guarded.

``python -m circuitkeep.bench.traffic FOLDER`` is one of two such processes, which `measure_traffic`
starts.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from circuitkeep.bench.strategies import start_workers
from circuitkeep.bench.strategies_cells import Cell
from circuitkeep.bench.strategies_measure import prepare_references, train
from circuitkeep.bench.strategies_task import Task, TaskSettings
from circuitkeep.capture.models import quiet

MODEL, SETTING = "llama", "plain"
STRATEGIES = ("ddp", "fsdp", "fsdp2")
KINDS = {"allreduce": "gradients", "reduce_scatter": "gradients", "allgather": "weights"}
"""What a collective moves in a training step, by a part of its name."""

Traffic = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Strategy -> ``plain`` or ``guarded`` -> ``gradients`` or ``weights`` -> times all parameters."""


def measure_traffic() -> Traffic:
    """How often the model's gradients are reduced and its weights gathered, per training step.

    Counted in two processes (gloo) that train a small Llama, in bytes over those of its
    parameters; the guard is due in every step.

    Raises:
        RuntimeError: If a process fails, with the last line it wrote.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cell = Cell(MODEL, SETTING, "single")
        prepare_references([cell], folder / "references")
        workers = start_workers("circuitkeep.bench.traffic", folder, 2)
        codes = [worker.wait() for worker in workers]
        if any(codes):
            lines = (folder / "stderr-0.txt").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"a process failed: {lines[-1] if lines else ''}")
        return json.loads((folder / "traffic.json").read_text(encoding="utf-8"))


class TrafficCounter(Callback):
    """Bytes that the second step moves, up to the optimizer's part in it, by `KINDS`."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self._counting: _Collectives | None = None

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin."""
        if batch_idx == 1:
            self._counting = _Collectives(self.bytes)
            self._counting.__enter__()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """End, before weights are gathered to be compared."""
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None


class _Collectives(TorchDispatchMode):
    """Adds up the bytes of collectives: the larger of input and output, which is the whole."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            for part, kind in KINDS.items():
                if part in func.name():
                    self.found[kind] += max(map(_size, args))
        return func(*args, **(kwargs or {}))


def _size(argument: Any) -> int:
    tensors = [one for one in tree_leaves(argument) if isinstance(one, Tensor)]
    return sum(one.numel() * one.element_size() for one in tensors)


def main() -> None:
    """Train under every strategy, with and without the guard, and count."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet()
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])
    settings = TaskSettings(model=MODEL)
    whole = sum(p.numel() * p.element_size() for p in Task(settings, seed=1).parameters())
    found: dict[str, dict[str, dict[str, float]]] = {}
    for strategy in STRATEGIES:
        for name, weight in (("plain", 0.0), ("guarded", 1.0)):
            counter = TrafficCounter()
            cell = Cell(MODEL, SETTING, strategy)
            references, own = folder / "references", folder / "lightning"
            train(cell, settings, references, own, rank, weight, [counter])
            sizes = {kind: counter.bytes[kind] / whole for kind in ("gradients", "weights")}
            found.setdefault(strategy, {})[name] = sizes
    if rank == 0:
        (folder / "traffic.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
