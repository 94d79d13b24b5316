"""What a suite is: settings that can be run, and findings that can be shown and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.console import RenderableType

from circuitkeep.bench.machine import describe_machine, find_device
from circuitkeep.bench.race import Race, Result, run_races
from circuitkeep.bench.report import as_json, legend, table

Progress = Callable[[str, int, int], None]
"""Told what runs next, how many runs are done, and of how many."""

LEAST_REPEATS = 5
"""Rounds below which a median and a range say little."""


class Findings(ABC):
    """What a suite found."""

    @abstractmethod
    def shown(self) -> list[RenderableType]:
        """For the terminal; text goes out as it is, without markup."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """For ``bench.json``: all figures, in plain types."""


class Suite(ABC):
    """Measurements that belong together; subclasses are plain dataclasses of their settings.

    A suite is added by such a class, and by a file in ``configs/bench`` that names it.
    """

    @abstractmethod
    def run(self, progress: Progress) -> Findings:
        """Measure."""


@dataclass(frozen=True, kw_only=True)
class RaceSuite(Suite):
    """A suite that consists of races.

    Attributes:
        repeats: Rounds; in each of them every contender does its work once.
        device: ``cpu``, ``cuda`` or ``cuda:NUMBER``.

    Raises:
        ValueError: If there are fewer rounds than `LEAST_REPEATS`, or a number but the seed is
            below 1.
    """

    repeats: int = LEAST_REPEATS
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.repeats < LEAST_REPEATS:
            raise ValueError(
                f"bench.repeats={self.repeats}: a median and its range need at least "
                f"{LEAST_REPEATS} rounds"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and isinstance(value, int) and value < 1:
                raise ValueError(f"bench.{field.name} must be at least 1, got {value}")

    @abstractmethod
    def races(self, device: torch.device) -> list[Race]:
        """Make the models and prompts, on `device`, and what is done with them."""

    def run(self, progress: Progress) -> Findings:
        """See `Suite.run`.

        Raises:
            ValueError: If the device is not there.
            DisagreementError: If two contenders come to different outcomes.
        """
        device = find_device(self.device)
        results = run_races(self.races(device), self.repeats, device, progress)
        return RaceFindings(results, self.repeats, describe_machine(device))


@dataclass(frozen=True)
class RaceFindings(Findings):
    """Results of races, and the machine they were run on."""

    results: Sequence[Result]
    repeats: int
    machine: dict[str, str | int]

    def shown(self) -> list[RenderableType]:
        """See `Findings.shown`."""
        tables = [table(result) for result in self.results]
        return [*tables, "", *legend(self.results, self.machine, self.repeats)]

    def content(self) -> dict[str, Any]:
        """See `Findings.content`."""
        races = [as_json(result) for result in self.results]
        return {"machine": self.machine, "races": races}
