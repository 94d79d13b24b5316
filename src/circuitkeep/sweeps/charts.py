"""What a guard kept against what it cost, as a plotly.js figure."""

from __future__ import annotations

from math import isfinite
from typing import Any

from circuitkeep.compare.charts import Chart, label
from circuitkeep.compare.replicates import Estimate
from circuitkeep.sweeps import wording
from circuitkeep.sweeps.analyse import price_of
from circuitkeep.sweeps.report import GroupResult, SweepReport

LABELLED = 8
"""Up to so many points have their names beside them; more would cover each other."""


def pareto_chart(report: SweepReport, circuit: str) -> Chart:
    """One point per group: price to the right, behaviour kept upwards, the front joined."""
    points = [
        (price_of(group, report.priced), group.circuits[circuit]["behaviour"].share, group)
        for group in report.groups
    ]
    points = [point for point in points if isfinite(point[0].mean) and isfinite(point[1].mean)]
    front = sorted(
        [point for point in points if circuit in point[2].front], key=lambda point: point[0].mean
    )
    traces: list[Chart] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x.mean for x, _, _ in front],
            "y": [y.mean for _, y, _ in front],
            "line": {"color": "var(--behaviour)", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    prices = [x.mean for x, _, _ in points]
    middle = (min(prices) + max(prices)) / 2 if points else 0.0
    for on_front in (False, True):
        chosen = [point for point in points if (circuit in point[2].front) == on_front]
        trace = _points(report, circuit, chosen, on_front)
        # Names are written towards the middle, where there is room for them.
        trace["textposition"] = [
            "top left" if x.mean > middle else "bottom right" for x, _, _ in chosen
        ]
        traces.append(trace)
    shares = [0.0, 1.0]
    for _, share, _ in points:
        shares += [bound for bound in (share.mean, share.low, share.high) if isfinite(bound)]
    pad = 0.05 * (max(shares) - min(shares))
    layout = _layout(report)
    layout["yaxis"] |= {"range": [min(shares) - pad, max(shares) + pad]}
    return {"data": traces, "layout": layout}


def _points(
    report: SweepReport,
    circuit: str,
    points: list[tuple[Estimate, Estimate, GroupResult]],
    on_front: bool,
) -> Chart:
    colour = "var(--behaviour)" if on_front else "var(--bar)"
    return {
        "type": "scatter",
        "mode": "markers+text" if len(report.groups) <= LABELLED else "markers",
        "x": [x.mean for x, _, _ in points],
        "y": [y.mean for _, y, _ in points],
        "error_x": _bars([x for x, _, _ in points], colour),
        "error_y": _bars([y for _, y, _ in points], colour),
        "text": [label(group.label.replace("penalty.", "")) for _, _, group in points],
        "textfont": {"color": "var(--ink)"},
        "hovertext": [_hover(report, circuit, group) for _, _, group in points],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {
            "symbol": "diamond" if on_front else "diamond-open",
            "size": 11,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
    }


def _bars(estimates: list[Estimate], colour: str) -> dict[str, Any]:
    known = [isfinite(e.low) and isfinite(e.high) for e in estimates]
    return {
        "type": "data",
        "array": [e.high - e.mean if k else 0 for e, k in zip(estimates, known, strict=True)],
        "arrayminus": [e.mean - e.low if k else 0 for e, k in zip(estimates, known, strict=True)],
        "color": colour,
        "thickness": 1.2,
        "width": 4,
    }


def _hover(report: SweepReport, circuit: str, group: GroupResult) -> str:
    lines = [label(group.label), f"seeds {', '.join(map(str, group.seeds))}"]
    for kind, kept in group.circuits[circuit].items():
        lines.append(" ".join([kind, *wording.share(kept.share)]).strip())
    figure, interval = wording.nats(group.price)
    lines.append(f"{label(report.price)} {figure} {interval}".strip())
    if group.price_difference is not None:
        lines.append(" ".join(["difference", *wording.nats(group.price_difference, sign=True)]))
    return "<br>".join(lines)


def _layout(report: SweepReport) -> Chart:
    axis = {"fixedrange": True, "zeroline": False, "gridcolor": "var(--rule)", "automargin": True}
    above = f"{label(report.price)} above the unregularized" if report.priced else report.price
    return {
        "height": 380,
        "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "xaxis": {
            **axis,
            "title": {"text": above, "font": {"size": 12.5}, "standoff": 10},
            "tickformat": "+~g" if report.priced else "~g",
            "nticks": 5,
            "tickangle": 0,
        },
        "yaxis": {
            **axis,
            "title": {"text": "behaviour kept", "font": {"size": 12.5}, "standoff": 10},
            "tickformat": ".0%",
        },
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "yref": "y",
                "x0": 0,
                "x1": 1,
                "y0": 1,
                "y1": 1,
                "layer": "below",
                "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
            }
        ],
    }
