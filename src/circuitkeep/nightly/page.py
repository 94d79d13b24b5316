"""The history as one HTML file that needs no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from circuitkeep.functional.change import ALLOWANCE, FEWEST, SMALLEST, WINDOW
from circuitkeep.nightly import wording
from circuitkeep.nightly.trend import BAD, STATES, Series, Trends
from circuitkeep.pages import number, percent, render, shared_script

MOST_POINTS = 300
"""Of a line; of more, the highest and the lowest of each stretch are kept, and what is wrong."""
LETTERS = {"failed": "x", "fell": "f", "drifts": "d", "inconclusive": "i", "passed": "p"}
MOST_EVENTS = 200
"""The newest are shown; the history holds all."""


def render_page(found: Trends, history: str) -> str:
    """What is wrong now, every check's value, a chart of every check over time, and the method.

    Self-contained: style, scripts and plotly.js (5 MB) are inlined; names from outside are escaped.

    Args:
        found: The history, looked at.
        history: Where it is.
    """
    here = Path(__file__).parent
    charts = grouped(found.series)
    checkpoints = list(dict.fromkeys(one.checkpoint for one in found.series))
    ordered = sorted(found.now, key=lambda one: STATES.index(one.last.state))
    content = {
        "found": found,
        "history": history,
        "ordered": ordered,
        "charts": charts,
        "circuits": list(dict.fromkeys(circuit for circuit, _ in charts)),
        "checkpoints": checkpoints,
        "gone": [one for one in found.series if one.last.run != found.runs[-1]],
        "events": list(reversed(found.events))[:MOST_EVENTS],
        "wording": wording,
        "bad": BAD,
        "number": number,
        "percent": percent,
        "settings": {
            "window": WINDOW,
            "fewest": FEWEST,
            "allowance": ALLOWANCE,
            "smallest": SMALLEST,
        },
    }
    return render(
        here / "page.html.j2",
        (here / "page.css").read_text(encoding="utf-8"),
        [
            shared_script("sorting.js"),
            get_plotlyjs(),
            (here / "page.js").read_text(encoding="utf-8"),
        ],
        {
            "charts": [_chart(several, checkpoints) for several in charts.values()],
            "ends": _ends(found),
        },
        content,
    )


def grouped(series: Sequence[Series]) -> dict[tuple[str, str], list[Series]]:
    """Circuit and check -> one series per checkpoint; circuits together."""
    found: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in series:
        found[one.circuit, one.check].append(one)
    order = list(dict.fromkeys(circuit for circuit, _ in found))
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))


def _ends(found: Trends) -> list[str]:
    """Of the time axis: all runs, and room for the marks at both ends."""
    times = [datetime.fromisoformat(run.time) for run in found.runs]
    first, last = min(times), max(times)
    room = max((last - first) * 0.03, timedelta(days=1))
    return [_drawn(time.isoformat(timespec="seconds")) for time in (first - room, last + room)]


def _drawn(time: str) -> str:
    """As plotly reads it, which knows no time zones: UTC."""
    return time.removesuffix("+00:00")


def _chart(several: Sequence[Series], checkpoints: Sequence[str]) -> dict[str, Any]:
    """What the page's script draws of one check: finite numbers, or null."""
    newest = several[0].last.measured
    return {
        "threshold": newest.threshold,
        "counted": newest.counted,
        "lines": [_line(one, checkpoints.index(one.checkpoint)) for one in several],
    }


def _line(one: Series, colour: int) -> dict[str, Any]:
    places = thinned(
        [point.measured.value for point in one.points],
        {i for i, point in enumerate(one.points) if point.state in BAD} | set(one.restarts),
    )
    points = [one.points[place] for place in places]
    counted = one.last.measured.counted
    return {
        "name": one.checkpoint,
        "colour": colour,
        "time": [_drawn(point.run.time) for point in points],
        "value": [_finite(point.measured.value) for point in points],
        "low": [] if counted else [_finite(point.measured.low) for point in points],
        "high": [] if counted else [_finite(point.measured.high) for point in points],
        "baseline": [] if counted else [_finite(point.step.baseline) for point in points],
        "state": "".join(LETTERS[point.state] for point in points),
        "restarts": [_drawn(one.points[place].run.time) for place in one.restarts],
    }


def thinned(values: Sequence[float], kept: set[int], most: int = MOST_POINTS) -> list[int]:
    """Places of at most about `most` values: both ends, the extremes of each stretch, and `kept`.

    Of `kept`, too, at most `most` stay: the newest.
    """
    if len(values) <= most:
        return list(range(len(values)))
    stretches = max(1, (most - 2) // 2)
    chosen = {0, len(values) - 1, *sorted(kept)[-most:]}
    for number_ in range(stretches):
        start, end = (len(values) * n // stretches for n in (number_, number_ + 1))
        inside = [place for place in range(start, end) if isfinite(values[place])]
        if inside:
            chosen |= {min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)}
    return sorted(chosen)


def _finite(value: float) -> float | None:
    """Four digits are more than an interval tells."""
    return float(f"{value:.4g}") if isfinite(value) else None
