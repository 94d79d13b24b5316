"""What the processes of a training agree on: who takes which rows, and which reference is used."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Int
from lightning.pytorch import Trainer
from torch import Tensor

from circuitkeep.reference import Fingerprint, Reference, load_reference


def place_of(trainer: Trainer) -> tuple[int, int]:
    """This process among those that train on different data: its number, and how many they are.

    Under tensor parallelism several processes train on the same data.
    """
    place = trainer.distributed_sampler_kwargs
    return (place["rank"], place["num_replicas"]) if place else (0, 1)


def part_of(rows: Int[Tensor, " row"], trainer: Trainer) -> tuple[Int[Tensor, " part"], float]:
    """What of `rows` this process takes, at least one, and its weight in a mean over processes."""
    rank, world = place_of(trainer)
    part = rows[rank::world]
    share = len(part) * world / len(rows)
    # One that counts for nothing if there are too few: all take part in every collective.
    return (part if len(part) else rows[:1]), share


def over_processes(trainer: Trainer, value: Tensor, share: float) -> Tensor:
    """The mean over all rows of what is a mean over each process's; every process calls this.

    Args:
        trainer: Of the processes.
        value: Over the rows of this one.
        share: Its weight: see `part_of`.
    """
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value * share, reduce_op="mean")  # type: ignore[return-value]


def read_for_all(
    path: Path,
    fingerprint: Fingerprint,
    may_differ: tuple[str, ...],
    needed: bool,
    trainer: Trainer,
) -> Reference | None:
    """What lies at `path`, read by the first process for all; None if nothing does.

    So that all do the same, and other machines need not see the file.
    """
    found: Reference | Exception | None = None
    if trainer.is_global_zero and (needed or path.is_file()):
        try:
            found = load_reference(path, fingerprint, may_differ)
        except (ValueError, FileNotFoundError) as error:
            found = error
    found = trainer.strategy.broadcast(found)
    if isinstance(found, Exception):
        raise found
    return found
