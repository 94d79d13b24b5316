"""What is said of a check, in the terminal and on the page alike."""

from __future__ import annotations

import math

from circuitkeep.nightly.history import Event, Measurement
from circuitkeep.nightly.trend import Point, Series, Trends
from circuitkeep.pages import number, signed

WORDS = {
    "failed": "failed",
    "fell": "fell",
    "drifts": "drifts down",
    "inconclusive": "inconclusive",
    "passed": "passed",
}


def interval(measured: Measurement) -> str:
    """Such as ``[0.91, 0.95]``; in counts, ``[0, 2]``."""
    if math.isnan(measured.low) or math.isnan(measured.high):
        return ""
    return f"[{figure(measured, measured.low)}, {figure(measured, measured.high)}]"


def figure(measured: Measurement, value: float) -> str:
    """A value as its check writes it: counts are whole."""
    return number(value, 0 if measured.counted else 3)


def against(one: Series) -> str:
    """What the last value is held against: the threshold it missed, or the baseline."""
    last = one.last
    if last.state in ("fell", "drifts"):
        return f"before {number(last.step.baseline, 3)}"
    return f"asked for {last.measured.threshold:g}"


def change(one: Series) -> str:
    """By how much it is lower than what it is held against."""
    last = one.last
    held = last.state in ("fell", "drifts")
    reference = last.step.baseline if held else last.measured.threshold
    return signed(last.measured.value - reference, 0 if last.measured.counted else 3)


def evidence(one: Series) -> str:
    """How sure it is; nothing where the check's own interval says it."""
    step = one.last.step
    if one.last.state == "fell":
        return f"{abs(step.jump):.1f} sd in one night"
    if one.last.state == "drifts":
        return f"{step.drift:.1f} sd in all"
    return ""


def since(one: Series) -> str:
    """The night it began, and how many runs ago."""
    first = one.since
    if first is None:
        return ""
    nights = len(one.points) - one.points.index(first)
    return f"{day(first)} ({nights} run{'s' * (nights != 1)})"


def day(point: Point) -> str:
    """The date of a run."""
    return point.run.time[:10]


def about(event: Event) -> str:
    """What an event is about: ``CHECKPOINT, CIRCUIT, CHECK``, or all."""
    named = [part for part in (event.checkpoint, event.circuit, event.check) if part]
    return ", ".join(named) or "everything"


def headline(trends: Trends) -> str:
    """How the newest run ended, in one sentence."""
    parts = []
    for state, singular, plural in (
        ("failed", "check failed", "checks failed"),
        ("fell", "check fell below its own history", "checks fell below their own history"),
        ("drifts", "check drifts down", "checks drift down"),
        ("inconclusive", "check is inconclusive", "checks are inconclusive"),
    ):
        count = sum(one.last.state == state for one in trends.now)
        if count:
            parts.append(f"{count} {singular if count == 1 else plural}")
    if trends.errors:
        count = len(trends.errors)
        parts.append(f"{count} could not be measured")
    total = len(trends.now)
    said = ", ".join(parts) if parts else "all passed"
    return f"{total} check{'s' * (total != 1)}: {said}"
