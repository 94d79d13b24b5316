"""A `lightning.Trainer` as a guard sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from circuitkeep.callbacks.periodic import log_metrics
from circuitkeep.guard import Training

T = TypeVar("T")


class LightningTraining(Training):
    """A fit of `module` by `trainer`; see `circuitkeep.guard.Training`."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer, self.root = trainer, module
        self.folder = Path(trainer.default_root_dir)

    @property
    def place(self) -> tuple[int, int]:
        """See `place_of`."""
        return place_of(self.trainer)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.trainer.is_global_zero

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value, reduce_op="mean")  # type: ignore[return-value]

    def from_first(self, value: T) -> T:
        """What the first process has."""
        return self.trainer.strategy.broadcast(value)

    def logs_at(self, step: int) -> bool:
        """In the steps in which Lightning logs."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % max(every, 1) == 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        """With every logger of the trainer."""
        log_metrics(self.trainer, values, step)


def place_of(trainer: Trainer) -> tuple[int, int]:
    """This process among those that train on different data: its number, and how many they are.

    Under tensor parallelism several processes train on the same data.
    """
    place = trainer.distributed_sampler_kwargs
    return (place["rank"], place["num_replicas"]) if place else (0, 1)


def end_of(trainer: Trainer) -> float:
    """How many optimizer steps the training will have taken in the end.

    Raises:
        ValueError: If the trainer knows no end.
    """
    end = trainer.estimated_stepping_batches
    if not 0 < end < math.inf:
        raise ValueError(
            "CircuitPreservation: decay lets the weight fall to 0 at the end of the training, and "
            "the trainer knows no end; give it max_steps or max_epochs"
        )
    return float(end)
