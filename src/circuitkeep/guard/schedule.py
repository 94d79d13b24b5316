"""In which steps the penalty is due, on how many rows, and with which weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple


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
        decay: How the weight falls from then on, "linear" or "cosine"; None not to.
        end: The optimizer step in which it would be 0.
    """

    weight: float
    warmup_steps: int
    pace: Pace
    decay: str | None = None
    end: float = math.inf

    def weight_at(self, step: int) -> float:
        """The penalty's weight in optimizer step `step`, were it due in every step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.weight * warm * self._left(step)

    def _left(self, step: int) -> float:
        if self.decay is None:
            return 1.0
        steps = max(1.0, self.end - self.warmup_steps)
        passed = min(1.0, max(0, step - self.warmup_steps) / steps)
        return 1 - passed if self.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2


def check_rows(owner: str, rows_per_step: int, pool_rows: int) -> None:
    """Refuse to draw more rows than there are.

    Raises:
        ValueError: With both numbers.
    """
    if rows_per_step > pool_rows:
        raise ValueError(
            f"{owner}: rows_per_step={rows_per_step} is more than pool_rows={pool_rows}"
        )


def check_settings(
    owner: str,
    *,
    weight: float,
    warmup_steps: int,
    every_n_steps: int,
    rows_per_step: int | None,
    pool_rows: int,
    budget: float | None,
    decay: str | None,
    constrained: bool,
) -> None:
    """Refuse settings of a guard that are out of range or at odds; `owner` is its class.

    Raises:
        ValueError: Naming the setting and its value.
    """
    for name, value, least in (
        ("weight", weight, 0),
        ("warmup_steps", warmup_steps, 0),
        ("every_n_steps", every_n_steps, 1),
        ("rows_per_step", 1 if rows_per_step is None else rows_per_step, 1),
        ("pool_rows", pool_rows, 1),
    ):
        if not least <= value < float("inf"):
            raise ValueError(f"{owner}: {name} must be >= {least}, got {value}")
    if rows_per_step is not None:
        check_rows(owner, rows_per_step, pool_rows)
    if decay not in (None, "linear", "cosine"):
        raise ValueError(f"{owner}: decay must be 'linear', 'cosine' or None, got {decay!r}")
    if constrained and (weight == 0 or warmup_steps or decay):
        raise ValueError(
            f"{owner}: a constraint chooses the weight itself, beginning with weight, "
            f"but weight={weight}, warmup_steps={warmup_steps}, decay={decay}; give a weight above "
            "0 and leave the others out"
        )
    if budget is None:
        return
    if not 0 < budget < 1:
        raise ValueError(
            f"{owner}: budget is a share of the training time, between 0 and 1 "
            f"(0.03 is 3%), got {budget}"
        )
    if every_n_steps != 1:
        raise ValueError(
            f"{owner}: budget={budget} chooses the interval itself, but "
            f"every_n_steps={every_n_steps} is given too; leave one of them out"
        )
