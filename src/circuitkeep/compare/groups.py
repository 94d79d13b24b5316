"""Checkpoints that are replicates: what each group kept, and how it differs from the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from circuitkeep.circuits import Circuit, did_you_mean
from circuitkeep.compare.paired import (
    KINDS,
    NAN,
    CircuitRows,
    Kept,
    corrected,
    kept,
    over_seeds,
    shares,
)
from circuitkeep.compare.report import CheckpointResult, ReplicateGroup

LOSS = "loss"


def check_groups(groups: Mapping[str, Sequence[str]], checkpoints: Sequence[str]) -> None:
    """Refuse groups that cannot be compared seed by seed.

    Raises:
        ValueError: If a checkpoint is unknown or stands twice, or groups differ in their number.
    """
    seen: dict[str, str] = {}
    sizes = {name: len(members) for name, members in groups.items()}
    for name, members in groups.items():
        if name in checkpoints:
            raise ValueError(f"replicates: {name!r} is a checkpoint; name the group otherwise")
        for member in members:
            if member not in checkpoints:
                raise ValueError(
                    f"replicates.{name}: there is no checkpoint {member!r}"
                    + did_you_mean(member, checkpoints)
                )
            if member in seen:
                raise ValueError(
                    f"replicates: checkpoint {member!r} stands in {seen[member]} and in {name}"
                )
            seen[member] = name
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"replicates: name as many checkpoints in each group, in the order of their seeds; "
            f"got {said}"
        )


def replicate_groups(
    groups: Mapping[str, Sequence[str]],
    circuits: Sequence[Circuit],
    base: Mapping[str, CircuitRows],
    measured: Mapping[str, Mapping[str, CircuitRows]],
    results: Mapping[str, CheckpointResult],
) -> tuple[ReplicateGroup, ...]:
    """What every group kept, and its differences to the first, seed by seed and row by row.

    Args:
        groups: Name -> checkpoints in the order of their seeds; see `check_groups`.
        circuits: Of which to say it.
        base: The base model's rows, by the circuits' names.
        measured: Checkpoint -> the same.
        results: Checkpoint -> its losses.
    """
    first = next(iter(groups), "")

    def of(name: str, circuit: str, kind: str) -> Kept:
        own, plain = (
            shares([measured[member][circuit] for member in groups[each]], base[circuit], kind)
            for each in (name, first)
        )
        return kept(own, () if name == first else (own, plain))

    def loss(name: str, dataset: str) -> Kept:
        own, plain = (
            over_seeds([results[m].capability[dataset]["loss_nats"] for m in groups[each]])
            for each in (name, first)
        )
        return kept(own, () if name == first else (own, plain))

    datasets = next(iter(results.values())).capability
    found = [
        ReplicateGroup(
            name,
            tuple(members),
            "" if name == first else first,
            {c.name: {kind: of(name, c.name, kind) for kind in KINDS} for c in circuits},
            {dataset: loss(name, dataset) for dataset in datasets},
        )
        for name, members in groups.items()
    ]
    return _corrected(found)


def _corrected(groups: Sequence[ReplicateGroup]) -> tuple[ReplicateGroup, ...]:
    """Holm's correction over groups and circuits for each kind, over groups and data for losses."""
    p: dict[tuple[str, str, str], float] = {}
    for group in groups:
        for dataset, one in group.losses.items():
            p[LOSS, group.name, dataset] = one.difference.p if one.difference else NAN
        for circuit, kinds in group.circuits.items():
            for kind, one in kinds.items():
                p[kind, group.name, circuit] = one.difference.p if one.difference else NAN
    found = corrected(p)
    return tuple(
        replace(
            group,
            losses={
                dataset: replace(one, p_holm=found.get((LOSS, group.name, dataset), NAN))
                for dataset, one in group.losses.items()
            },
            circuits={
                circuit: {
                    kind: replace(one, p_holm=found.get((kind, group.name, circuit), NAN))
                    for kind, one in kinds.items()
                }
                for circuit, kinds in group.circuits.items()
            },
        )
        for group in groups
    )
