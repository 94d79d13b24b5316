"""What each checkpoint kept against what it cost, and which no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from circuitkeep.compare.charts import SYMBOLS, Chart, label
from circuitkeep.compare.report import Report
from circuitkeep.compare.wording import loss_difference, percent_interval, retention
from circuitkeep.pages import percent, signed

KEPT = ("causal", "behaviour")
NUMBERED = 12
"""With more checkpoints than this the points bear no number."""


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (price, kept) that no other point beats: none is better in both.

    Less price and more kept are better. Points with a NaN are left out; of equal points all stay.
    """
    known = [(index, point) for index, point in enumerate(points) if all(map(isfinite, point))]
    return [
        index
        for index, (price, kept) in known
        if not any(
            other != (price, kept) and other[0] <= price and other[1] >= kept for _, other in known
        )
    ]


def points(report: Report, circuit: str, dataset: str, kind: str) -> list[tuple[float, float]]:
    """Per checkpoint: loss on `dataset` minus the base's in nats per token, and the retention."""
    return [
        (
            loss_difference(checkpoint, report.base, dataset),
            retention(checkpoint.circuits[circuit], kind)[0],
        )
        for checkpoint in report.checkpoints
    ]


def front_numbers(report: Report, circuit: str, dataset: str, kind: str) -> list[int]:
    """The checkpoints on the front, counted from 1."""
    return [at + 1 for at in front(points(report, circuit, dataset, kind))]


def pareto_chart(report: Report, circuit: str, dataset: str) -> Chart:
    """Causal and behaviour retention against the loss; filled points are on the front."""
    traces = []
    ends: list[list[float]] = [[0.0], [1.0]]
    for kind in KEPT:
        found = points(report, circuit, dataset, kind)
        best = sorted(front(found), key=found.__getitem__)
        known = [at for at, point in enumerate(found) if all(map(isfinite, point))]
        colour = f"var(--{kind})"
        for axis in (0, 1):
            ends[axis] += [found[at][axis] for at in known]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [found[at][0] for at in best],
                "y": [found[at][1] for at in best],
                # A front is a stair: what lies between two of its points, no checkpoint reached.
                "line": {"color": colour, "width": 1.2, "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
        numbered = not report.steps and len(report.checkpoints) <= NUMBERED
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if numbered else "markers",
                "x": [found[at][0] for at in known],
                "y": [found[at][1] for at in known],
                "text": [str(at + 1) for at in known],
                # The numbers of both kinds keep apart where their points lie together.
                "textposition": "bottom left" if kind == "causal" else "top right",
                "textfont": {"color": colour},
                "hovertext": [_hover(report, circuit, dataset, kind, at) for at in known],
                "hoverinfo": "text",
                "cliponaxis": False,
                "marker": {
                    "symbol": [SYMBOLS[kind] + "-open" * (at not in best) for at in known],
                    "size": 10,
                    "color": colour,
                    "line": {"width": 1.5, "color": colour},
                },
            }
        )
    return {"data": traces, "layout": _layout(*map(_padded, ends))}


def _hover(report: Report, circuit: str, dataset: str, kind: str, at: int) -> str:
    checkpoint = report.checkpoints[at]
    share, interval = retention(checkpoint.circuits[circuit], kind)
    return (
        f"{at + 1}. {label(checkpoint.name)}<br>{kind} {percent(share)} "
        f"{percent_interval(interval)}<br>{label(dataset)} "
        f"{signed(loss_difference(checkpoint, report.base, dataset))} nats"
    )


def _padded(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.1 * (high - low or 1.0)
    return [low - pad, high + pad]


def _layout(price: list[float], kept: list[float]) -> Chart:
    axis = {"fixedrange": True, "zeroline": False, "gridcolor": "var(--rule)", "nticks": 5}
    base = {
        "type": "line",
        "layer": "below",
        "line": {"color": "var(--muted)", "width": 1.5, "dash": "dot"},
    }
    across = {"xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    upright = {"yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0}
    return {
        "width": 340,
        "height": 300,
        "margin": {"l": 52, "r": 12, "t": 26, "b": 46},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "shapes": [base | across, base | upright],
        "xaxis": axis
        | {
            "range": price,
            "tickformat": "+~g",
            "title": {"text": "price, nats per token", "standoff": 6, "font": {"size": 12}},
        },
        "yaxis": axis | {"range": kept, "tickformat": ".0%"},
    }
