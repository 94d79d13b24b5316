"""What a history says of each check: passed, failed, or passed and yet lower than it was."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from circuitkeep.functional.change import Limits, Step, follow
from circuitkeep.nightly.history import Content, Event, Measurement, Run

STATES = ("failed", "fell", "drifts", "inconclusive", "passed")
"""The worst first."""
BAD = ("failed", "fell", "drifts")


@dataclass(frozen=True)
class Point:
    """One measurement, and what the history before it says of it."""

    run: Run
    measured: Measurement
    step: Step

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.measured.verdict == "failed":
            return "failed"
        if self.step.fell:
            return "fell"
        return "drifts" if self.step.drifts else self.measured.verdict


@dataclass(frozen=True)
class Series:
    """One check of one circuit in the checkpoints of one name, in the order of the runs."""

    checkpoint: str
    circuit: str
    check: str
    points: tuple[Point, ...]
    restarts: tuple[int, ...]
    """Places of the points from which on the baseline counts anew, because somebody said so."""

    @property
    def last(self) -> Point:
        """The newest."""
        return self.points[-1]

    @property
    def since(self) -> Point | None:
        """Where what is wrong began; None if nothing is."""
        if self.last.state == "failed":
            first = len(self.points) - 1
            while first and self.points[first - 1].measured.verdict == "failed":
                first -= 1
            return self.points[first]
        place = self.last.step.since
        return None if place is None else self.points[place]


@dataclass(frozen=True)
class Trends:
    """A history, looked at.

    Attributes:
        series: In the order of checkpoint, circuit, and check as the runs have them.
        errors: Of the newest run.
        events: All, in their order.
        runs: All, in their order.
        nights: Between false alarms of all series together, on average.
        limits: That follow from it.
    """

    series: tuple[Series, ...]
    errors: tuple[Event, ...]
    events: tuple[Event, ...]
    runs: tuple[Run, ...]
    nights: int | float
    limits: Limits

    @property
    def now(self) -> list[Series]:
        """Those that the newest run measured."""
        return [one for one in self.series if one.last.run == self.runs[-1]]

    @property
    def bad(self) -> list[Series]:
        """Those of them in which something is wrong, the worst first."""
        found = [one for one in self.now if one.last.state in BAD]
        return sorted(found, key=lambda one: STATES.index(one.last.state))


def trends(content: Content, nights: int | float) -> Trends:
    """Look at a history.

    Args:
        content: With at least one run.
        nights: In how many runs there is one false alarm, on average, if nothing changes; for all
            series of the newest run together, and all of the past are judged by the same limits.

    Raises:
        ValueError: If there is no run, or false alarms are wanted too often.
    """
    if not content.runs:
        raise ValueError("the history holds no run yet")
    runs = {run.id: run for run in content.runs}
    found: dict[tuple[str, str, str], list[tuple[Run, Measurement]]] = defaultdict(list)
    for number, one in content.measurements:
        found[one.checkpoint, one.circuit, one.check].append((runs[number], one))
    newest = content.runs[-1]
    charted = sum(
        points[-1][0] == newest and math.isfinite(points[-1][1].error) for points in found.values()
    )
    limits = Limits.of(nights * max(1, charted))
    accepted = [event for event in content.events if event.kind == "accepted"]
    return Trends(
        tuple(_series(key, points, accepted, limits) for key, points in found.items()),
        tuple(one for one in content.events if one.kind == "error" and one.run == newest.id),
        content.events,
        content.runs,
        nights,
        limits,
    )


def _series(
    key: tuple[str, str, str],
    points: Sequence[tuple[Run, Measurement]],
    accepted: Sequence[Event],
    limits: Limits,
) -> Series:
    measured = [one for _, one in points]
    restarts = tuple(
        place
        for event in accepted
        if _is_about(event, key)
        for place in [next((i for i, (run, _) in enumerate(points) if run.id >= event.run), None)]
        if place is not None
    )
    steps = follow(
        [one.value for one in measured],
        [one.error for one in measured],
        limits,
        unsound={i for i, one in enumerate(measured) if one.verdict == "failed"},
        repeats={i + 1 for i, (one, after) in enumerate(pairwise(measured)) if _same(one, after)},
        restarts=set(restarts),
    )
    joined = zip(points, steps, strict=True)
    return Series(*key, tuple(Point(run, one, step) for (run, one), step in joined), restarts)


def _is_about(event: Event, key: tuple[str, str, str]) -> bool:
    asked = (event.checkpoint, event.circuit, event.check)
    return all(one in ("", other) for one, other in zip(asked, key, strict=True))


def _same(one: Measurement, after: Measurement) -> bool:
    """The same weights on the same rows."""
    return (one.fingerprint, one.seeds, one.value) == (after.fingerprint, after.seeds, after.value)
