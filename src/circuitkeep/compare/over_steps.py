"""One training over its steps, as plotly.js figures; see `circuitkeep.compare.charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from circuitkeep.compare.charts import SYMBOLS, Chart, label, score_chart
from circuitkeep.compare.report import Interval, Report
from circuitkeep.compare.wording import KINDS, loss_difference, percent_interval, retention
from circuitkeep.pages import percent, signed

DASHES = {"identity": "solid", "causal": "dash", "behaviour": "dot"}

MARKED = 30
"""More steps than this are lines alone."""


def retention_over_steps(report: Report, circuit: str) -> Chart:
    """Identity, causal and behaviour retention as lines, their 95% intervals as bands."""
    found = {
        kind: [retention(each.circuits[circuit], kind) for each in report.checkpoints]
        for kind in KINDS
    }
    return _shares_over_steps(report, found, {kind: kind for kind in KINDS})


def drift_over_steps(report: Report, circuit: str, manifold: str) -> Chart:
    """What a manifold keeps of its shape and of its place, likewise."""
    moved = [each.geometry[circuit].manifolds[manifold].drift for each in report.checkpoints]
    found = {
        figure: [(each[figure].value, (each[figure].low, each[figure].high)) for each in moved]
        for figure in ("shape", "place")
    }
    return _shares_over_steps(report, found, {"shape": "identity", "place": "causal"})


def _shares_over_steps(
    report: Report,
    found: Mapping[str, Sequence[tuple[float, Interval]]],
    looks: Mapping[str, str],
) -> Chart:
    """Shares of the base's as lines, their intervals as bands; each looks like a kind."""
    bands, lines, ends = [], [], [0.0, 1.0]
    for name, shares in found.items():
        kind, known = looks[name], []
        steps = zip(report.steps, report.checkpoints, shares, strict=True)
        for step, checkpoint, (share, interval) in steps:
            if isfinite(share):
                low, high = (bound if isfinite(bound) else share for bound in interval)
                said = f"{name} {percent(share)} {percent_interval(interval)}"
                known.append((step, share, low, high, _hover(step, checkpoint.name, said)))
        x, y, low, high, text = map(list, zip(*known, strict=True)) if known else [[]] * 5
        ends += [*low, *high]
        bands.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x + x[::-1],
                "y": high + low[::-1],
                "fill": "toself",
                "fillcolor": f"var(--{kind}-band)",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        lines.append(_line(name, x, y, text, f"var(--{kind})", DASHES[kind], SYMBOLS[kind]))
    pad = 0.05 * (max(ends) - min(ends))
    yaxis = {"range": [min(ends) - pad, max(ends) + pad], "tickformat": ".0%"}
    return {"data": [*bands, *lines], "layout": _layout(1.0, yaxis)}


def capability_over_steps(report: Report) -> Chart:
    """Loss minus the base's, in nats per token: a line per dataset."""
    lines = []
    styles = [(dash, symbol) for symbol in SYMBOLS.values() for dash in ("solid", "dash", "dot")]
    for at, dataset in enumerate(report.base.capability):
        known = []
        for step, checkpoint in zip(report.steps, report.checkpoints, strict=True):
            difference = loss_difference(checkpoint, report.base, dataset)
            if isfinite(difference):
                said = f"{label(dataset)} {signed(difference)} nats"
                known.append((step, difference, _hover(step, checkpoint.name, said)))
        x, y, text = map(list, zip(*known, strict=True)) if known else [[]] * 3
        dash, symbol = styles[at % len(styles)]
        lines.append(_line(label(dataset), x, y, text, "var(--ink)", dash, symbol))
    return {"data": lines, "layout": _layout(0.0, {"tickformat": "+~g"})}


def score_frames(report: Report, circuit: str, role: str) -> Chart:
    """The score of every head in the base, then at each step: one figure, its cells as frames.

    The page's slider puts the cells of a frame in; scores are rounded to three digits, so that
    the page stays small.
    """
    base = report.base.circuits[circuit]
    chart = score_chart(base, base, role, room_px=420)
    models = [("base", base)] + [
        (f"step {step}", checkpoint.circuits[circuit])
        for step, checkpoint in zip(report.steps, report.checkpoints, strict=True)
    ]
    (heatmap,) = chart["data"]
    del heatmap["text"], heatmap["hoverinfo"]
    heatmap |= {
        "customdata": _cells(base.scores[role]),
        "hovertemplate": "L%{y}H%{x}: %{z:.2f} (base %{customdata:.2f})<extra></extra>",
        "hoverongaps": False,
    }
    frames = [
        {"name": name, "data": [{"type": "heatmap", "z": _cells(result.scores[role])}]}
        for name, result in models
    ]
    return {**chart, "frames": frames}


def _cells(scores: tuple[tuple[float, ...], ...]) -> list[list[float | None]]:
    return [[round(score, 3) if isfinite(score) else None for score in row] for row in scores]


def _hover(step: int, name: str, said: str) -> str:
    return f"step {step}<br>{label(name)}<br>{said}"


def _line(
    name: str, x: list[int], y: list[float], text: list[str], colour: str, dash: str, symbol: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= MARKED else "lines",
        "name": name,
        "x": x,
        "y": y,
        "text": text,
        "hoverinfo": "text",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"symbol": symbol, "size": 7, "color": colour},
    }


def _layout(base: float, yaxis: dict[str, Any]) -> Chart:
    axis = {"fixedrange": True, "zeroline": False, "gridcolor": "var(--rule)", "nticks": 6}
    return {
        "height": 300,
        "margin": {"l": 56, "r": 12, "t": 26, "b": 44},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "dragmode": False,
        "hovermode": "closest",
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": base,
                "y1": base,
                "layer": "below",
                "line": {"color": "var(--muted)", "width": 1.5, "dash": "dot"},
            }
        ],
        "xaxis": axis
        | {
            "title": {"text": "training step", "standoff": 6, "font": {"size": 12}},
            "showgrid": False,
        },
        "yaxis": axis | yaxis,
    }
