"""What a guard asks of the training that it takes part in, whosever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from jaxtyping import Int
from torch import Tensor, nn

from circuitkeep.reference import Fingerprint, Reference, load_reference

T = TypeVar("T")


class Training(ABC):
    """A training under way, in one process or several.

    Attributes:
        root: The module whose parameters are trained; it is the model, or holds it.
        folder: The run's, under which references are kept.
    """

    root: nn.Module
    folder: Path

    @property
    @abstractmethod
    def place(self) -> tuple[int, int]:
        """This process among those that train on different data: its number, and how many."""

    @property
    @abstractmethod
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """Over all processes, each of which calls this."""

    @abstractmethod
    def from_first(self, value: T) -> T:
        """What the first process has, in all of them; every process calls this."""

    def logs_at(self, step: int) -> bool:
        """Whether the penalty is logged in optimizer step `step`, as soon as it is known."""
        return False

    def log(self, values: Mapping[str, float], step: int) -> None:  # noqa: B027
        """Log `values` at `step`; every process calls this."""


def part_of(rows: Int[Tensor, " row"], training: Training) -> tuple[Int[Tensor, " part"], float]:
    """What of `rows` this process takes, at least one, and its weight in a mean over processes."""
    rank, world = training.place
    part = rows[rank::world]
    share = len(part) * world / len(rows)
    # One that counts for nothing if there are too few: all take part in every collective.
    return (part if len(part) else rows[:1]), share


def read_for_all(
    path: Path,
    fingerprint: Fingerprint,
    may_differ: tuple[str, ...],
    needed: bool,
    training: Training,
) -> Reference | None:
    """What lies at `path`, read by the first process for all; None if nothing does.

    So that all do the same, and other machines need not see the file.
    """
    found: Reference | Exception | None = None
    if training.is_first and (needed or path.is_file()):
        try:
            found = load_reference(path, fingerprint, may_differ)
        except (ValueError, FileNotFoundError) as error:
            found = error
    found = training.from_first(found)
    if isinstance(found, Exception):
        raise found
    return found
