"""Watching the steps of a Lightning trainer: time, operations, memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from circuitkeep.bench.memory import PeakMemory
from circuitkeep.bench.race import wait_for


class Clock(Callback):
    """Wall time, and processor time of this process, of all steps after the first."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.cpu_seconds, self.start = device, 0.0, 0.0, (0.0, 0.0)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin."""
        wait_for(self.device)
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End; the first step may prepare things."""
        wait_for(self.device)
        if batch_idx > 0:
            self.seconds += time.perf_counter() - self.start[0]
            self.cpu_seconds += time.process_time() - self.start[1]


class Counter(Clock):
    """Operations and peak memory of the second step."""

    flops = peak_bytes = 0

    def __init__(self, device: torch.device, unused: Any) -> None:
        super().__init__(device)
        self.unused = unused

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count."""
        if batch_idx == 1:
            # The gradients of the step before, which the optimizer's closure would drop later.
            pl_module.zero_grad(set_to_none=True)
            self.memory = PeakMemory(self.device, self.unused)
            self.memory.__enter__()
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read off."""
        if batch_idx == 1:
            self.counter.__exit__(None, None, None)
            self.memory.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()
            self.peak_bytes = self.memory.bytes
