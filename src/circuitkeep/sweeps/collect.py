"""The runs below a folder, and which of them differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitkeep.sweeps.record import NAME, RunRecord, read_record


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, ordered by it.

    Attributes:
        label: What was swept beside the seed.
        runs: One per seed.
        against: Label of the unregularized runs with the same other settings; empty if there are
            none, or these are they.
    """

    label: str
    runs: tuple[Run, ...]
    against: str = ""

    @property
    def unregularized(self) -> bool:
        """Whether nothing held the circuit."""
        return self.runs[0].record.unregularized

    @property
    def by_seed(self) -> dict[int, Run]:
        """Seed -> run."""
        return {run.record.seed: run for run in self.runs}


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The finished runs below `folder`, and the names of the others.

    Raises:
        FileNotFoundError: If there is no run at all.
        ValueError: If none is finished.
    """
    finished: dict[str, Run] = {}
    others = []
    paths = sorted(folder.rglob(NAME))
    for path in paths:
        record = read_record(path.parent)
        assert record is not None
        name = path.parent.relative_to(folder).as_posix()
        if record.status == "finished":
            # The same run under two names, of sweeps that varied different keys, counts once.
            finished.setdefault(record.fingerprint, Run(name, path.parent, record))
        else:
            others.append(name)
    if not paths:
        raise FileNotFoundError(
            f"no {NAME} below {folder}: `circuitkeep train -m KEY=A,B output={folder}` makes runs"
        )
    if not finished:
        raise ValueError(
            f"none of the {len(paths)} runs below {folder} is finished; start it again"
        )
    return list(finished.values()), others


def grouped(runs: Sequence[Run], settings: Mapping[str, str]) -> list[Group]:
    """Runs by everything but the seed, each group with what it is to be compared with.

    Args:
        runs: Finished ones.
        settings: Run's name -> what is the same for all runs that differ in nothing but the seed
            and how the circuit is held.

    Returns:
        The unregularized groups first, the others in the order of their labels.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(run.record.group, []).append(run)
    groups = [
        Group(each[0].record.label, tuple(sorted(each, key=lambda run: run.record.seed)))
        for each in members.values()
    ]
    labels = [group.label for group in groups]
    groups = [
        # Where different sweeps share a folder, one label may stand for two settings.
        Group(f"{g.label} ({g.runs[0].record.group[:6]})", g.runs)
        if labels.count(g.label) > 1
        else g
        for g in groups
    ]

    def setting(group: Group) -> str:
        return settings[group.runs[0].name]

    plain = [group for group in groups if group.unregularized]
    paired = []
    for group in groups:
        same = [other for other in plain if setting(other) == setting(group)]
        against = same[0].label if same and not group.unregularized else ""
        paired.append(Group(group.label, group.runs, against))
    return sorted(paired, key=lambda group: (not group.unregularized, _order(group)))


def _order(group: Group) -> list[tuple[str, float, str]]:
    """Numbers by size, not by their digits."""
    found = []
    for key, value in group.runs[0].record.swept.items():
        try:
            size = float(value)
        except ValueError:
            size = float("inf")
        if key != "seed":
            found.append((key, size, value))
    return found
