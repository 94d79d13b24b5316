"""In which steps the penalty is due, on how many rows, and with which weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning.pytorch import Trainer


class Share(NamedTuple):
    """What of the probe rows a due step takes.

    Attributes:
        rows: Over all ranks.
        times: What the penalty is multiplied by, for the steps that have none: one over the
            fraction of steps that are due.
    """

    rows: int
    times: float


class Pace(ABC):
    """When the penalty is due; the same on all ranks."""

    @abstractmethod
    def at(self, step: int) -> Share | None:
        """What optimizer step `step` takes, or None if nothing is due in it."""

    @property
    def state(self) -> dict[str, Any] | None:
        """For a resumed run, in plain numbers; None if there is nothing to keep."""
        return None

    def before_batch(self, trainer: Trainer) -> None:  # noqa: B027
        """Called on every rank before each batch of the training."""

    def after_batch(self, trainer: Trainer) -> None:  # noqa: B027
        """And after it."""


@dataclass(frozen=True)
class EveryN(Pace):
    """Every so many optimizer steps, always as many rows.

    Attributes:
        every_n: Optimizer steps.
        rows: Over all ranks.
        origin: A step that is due.
    """

    every_n: int
    rows: int
    origin: int = 0

    def at(self, step: int) -> Share | None:
        """See `Pace`."""
        due = (step - self.origin) % self.every_n == 0
        return Share(self.rows, self.every_n) if due else None


@dataclass(frozen=True)
class Schedule:
    """All that is decided anew for each step.

    Attributes:
        weight: Of the penalty, once it has risen.
        warmup_steps: Optimizer steps over which it rises linearly from 0.
        pace: When the penalty is due.
    """

    weight: float
    warmup_steps: int
    pace: Pace

    def weight_at(self, step: int) -> float:
        """The penalty's weight in optimizer step `step`, were it due in every step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.weight * warm


def check_settings(
    *,
    weight: float,
    warmup_steps: int,
    every_n_steps: int,
    rows_per_step: int,
    pool_rows: int,
    budget: float | None,
) -> None:
    """Refuse settings of `CircuitPreservation` that are out of range or at odds.

    Raises:
        ValueError: Naming the setting and its value.
    """
    for name, value, least in (
        ("weight", weight, 0),
        ("warmup_steps", warmup_steps, 0),
        ("every_n_steps", every_n_steps, 1),
        ("rows_per_step", rows_per_step, 1),
        ("pool_rows", pool_rows, 1),
    ):
        if not least <= value < float("inf"):
            raise ValueError(f"CircuitPreservation: {name} must be >= {least}, got {value}")
    if rows_per_step > pool_rows:
        raise ValueError(
            f"CircuitPreservation: rows_per_step={rows_per_step} is more than pool_rows={pool_rows}"
        )
    if budget is None:
        return
    if not 0 < budget < 1:
        raise ValueError(
            "CircuitPreservation: budget is a share of the training time, between 0 and 1 "
            f"(0.03 is 3%), got {budget}"
        )
    if every_n_steps != 1:
        raise ValueError(
            f"CircuitPreservation: budget={budget} chooses the interval itself, but "
            f"every_n_steps={every_n_steps} is given too; leave one of them out"
        )
