"""The page's plots as plotly.js figures: plain mappings of lists, texts and finite numbers.

Colours are written as the stylesheet's variables (``var(--causal)``); the page's script puts in
what they stand for in light, dark and print. Plotly reads labels as markup of its own, so every
name passes through `label`.
"""

from __future__ import annotations

import re
from html import escape
from math import isfinite
from typing import Any

from circuitkeep.compare.report import CircuitResult, Report
from circuitkeep.compare.wording import (
    KINDS,
    loss_difference,
    measured,
    percent_interval,
    retention,
)
from circuitkeep.pages import number, percent, signed

Chart = dict[str, Any]
"""``{"data": [...], "layout": {...}}`` as plotly.js takes it."""

HEADING_PX, LINE_PX, LABEL_CHARACTERS = 32, 19, 72
SYMBOLS = {"identity": "circle", "causal": "square", "behaviour": "diamond"}


def label(text: str) -> str:
    """A name as a plotly label shows it literally, shortened in the middle if very long."""
    if len(text) > LABEL_CHARACTERS:
        half = LABEL_CHARACTERS // 2 - 1
        text = f"{text[:half]}…{text[-half:]}"
    return escape(text, quote=False)


def file_name(name: str) -> str:
    """A name as part of a path: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "figure"


def retention_chart(report: Report, circuit: str) -> Chart:
    """Identity, causal and behaviour retention of every checkpoint, with their intervals."""
    traces, ends = [], [0.0, 1.0]
    for line, kind in enumerate(KINDS):
        points = []
        for row, checkpoint in enumerate(report.checkpoints):
            result = checkpoint.circuits[circuit]
            share, interval = retention(result, kind)
            if not isfinite(share):
                continue
            low, high = (bound if isfinite(bound) else share for bound in interval)
            ends += [low, high, share]
            text = (
                f"{label(checkpoint.name)}<br>{kind} {percent(share)} {percent_interval(interval)}"
                f"<br>{number(measured(result, kind))} "
                f"(base {number(measured(report.base.circuits[circuit], kind))})"
            )
            points.append((share, _line(row, line, len(KINDS)), high - share, share - low, text))
        x, y, above, below, text = map(list, zip(*points, strict=True)) if points else [[]] * 5
        colour = f"var(--{kind})"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": x,
                "y": y,
                "text": text,
                "hoverinfo": "text",
                "marker": {"symbol": SYMBOLS[kind], "size": 10, "color": colour},
                "error_x": {
                    "type": "data",
                    "array": above,
                    "arrayminus": below,
                    "color": colour,
                    "thickness": 1.5,
                    "width": 4,
                },
            }
        )
    names = [checkpoint.name for checkpoint in report.checkpoints]
    layout = _rows_layout(names, list(KINDS), (min(ends), max(ends)), reference=1.0)
    layout["xaxis"] |= {"tickformat": ".0%"}
    return {"data": traces, "layout": layout}


def capability_chart(report: Report) -> Chart:
    """Loss of every checkpoint minus the base's, per dataset, in nats per token."""
    datasets = list(report.base.capability)
    x, y, texts = [], [], []
    for row, checkpoint in enumerate(report.checkpoints):
        for line, dataset in enumerate(datasets):
            difference = loss_difference(checkpoint, report.base, dataset)
            if not isfinite(difference):
                continue
            x.append(difference)
            y.append(_line(row, line, len(datasets)))
            values = ", ".join(
                f"{name.replace('_nats', '')} {number(value, 3)}"
                for name, value in checkpoint.capability[dataset].items()
            )
            texts.append(
                f"{label(checkpoint.name)}<br>{label(dataset)} {signed(difference)} nats<br>"
                + label(values)
            )
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": x,
        "y": y,
        "width": [LINE_PX * 0.55] * len(x),
        "text": texts,
        "textposition": "none",
        "hoverinfo": "text",
        "marker": {"color": "var(--bar)"},
    }
    names = [checkpoint.name for checkpoint in report.checkpoints]
    layout = _rows_layout(names, datasets, (min([0.0, *x]), max([0.0, *x])), reference=0.0)
    layout["xaxis"] |= {"tickformat": "+~g", "ticksuffix": " nats"}
    return {"data": [bars], "layout": layout}


def rows_width(report: Report) -> int:
    """Pixels that the headings of the row charts need; narrower screens scroll them."""
    longest = max((len(checkpoint.name) for checkpoint in report.checkpoints), default=0)
    # 8 pixels per bold letter, and 80 for the labels of the lines, which headings stand right of.
    return 8 * min(longest, LABEL_CHARACTERS) + 80


def _line(row: int, line: int, lines: int) -> float:
    """Where a line of a row lies, in pixels from the top: rows are headed by their name."""
    return row * (HEADING_PX + lines * LINE_PX) + HEADING_PX + (line + 0.5) * LINE_PX


def _rows_layout(
    names: list[str], lines: list[str], ends: tuple[float, float], reference: float
) -> Chart:
    row_px = HEADING_PX + len(lines) * LINE_PX
    pad = 0.04 * (ends[1] - ends[0] or 1.0)
    headings = [
        {
            # The axis is in pixels, so that a heading and its lines keep their distance.
            "text": f"<b>{label(name)}</b>",
            "xref": "paper",
            "yref": "y",
            "x": 0,
            "y": row * row_px + HEADING_PX - 1,
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"color": "var(--ink)"},
        }
        for row, name in enumerate(names)
    ]
    return {
        "height": len(names) * row_px + 62,
        "margin": {"l": 8, "r": 12, "t": 26, "b": 36},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "annotations": headings,
        "shapes": [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": reference,
                "x1": reference,
                "y0": 0,
                "y1": 1,
                "layer": "below",
                "line": {"color": "var(--muted)", "width": 1.5, "dash": "dot"},
            }
        ],
        "xaxis": {
            "range": [ends[0] - pad, ends[1] + pad],
            "fixedrange": True,
            "zeroline": False,
            "gridcolor": "var(--rule)",
        },
        "yaxis": {
            "range": [len(names) * row_px, 0],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "tickmode": "array",
            "tickvals": [
                _line(row, line, len(lines))
                for row in range(len(names))
                for line in range(len(lines))
            ],
            "ticktext": [_short(line) for line in lines] * len(names),
        },
    }


def _short(text: str) -> str:
    """A line's label; its full text stands in the table and in the hover text."""
    return escape(text if len(text) <= 22 else f"{text[:13]}…{text[-8:]}", quote=False)


def score_chart(result: CircuitResult, base: CircuitResult, role: str, room_px: int = 170) -> Chart:
    """Layer x head scores of one role in one model; the named heads are outlined.

    The longer side takes about `room_px` pixels.
    """
    scores, base_scores = result.scores[role], base.scores[role]
    layers, heads = len(scores), len(scores[0])
    cell = max(5, min(30, room_px // max(layers, heads)))
    gap = 1 if cell > 7 else 0
    text = [
        [
            f"L{layer}H{head}: {_probability(score)} (base {_probability(base_score)})"
            for head, (score, base_score) in enumerate(zip(row, base_row, strict=True))
        ]
        for layer, (row, base_row) in enumerate(zip(scores, base_scores, strict=True))
    ]
    heatmap = {
        "type": "heatmap",
        "z": [[score if isfinite(score) else None for score in row] for row in scores],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[stop / 4, f"var(--heat-{stop})"] for stop in range(5)],
        "showscale": False,
        "xgap": gap,
        "ygap": gap,
        "text": text,
        "hoverinfo": "text",
    }
    outlines = []
    for name in result.role_scores[role]:
        layer, head = (int(part) for part in name[1:].split("H"))
        outlines.append(
            {
                "type": "rect",
                "x0": head - 0.5,
                "x1": head + 0.5,
                "y0": layer - 0.5,
                "y1": layer + 0.5,
                "line": {"color": "var(--named)", "width": 2},
            }
        )
    axis = {
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "tick0": 0,
        "ticks": "",
    }
    left, bottom = 42, 38
    return {
        "data": [heatmap],
        "layout": {
            "width": heads * cell + left + 4,
            "height": layers * cell + bottom + 26,
            "margin": {"l": left, "r": 4, "t": 26, "b": bottom},
            "dragmode": False,
            "shapes": outlines,
            "xaxis": axis
            | {
                "title": {"text": "head", "standoff": 4, "font": {"size": 12}},
                "dtick": _tick(heads, cell),
            }
            | {"range": [-0.5, heads - 0.5]},
            "yaxis": axis
            | {
                "title": {"text": "layer", "standoff": 4, "font": {"size": 12}},
                "dtick": _tick(layers, cell),
            }
            | {"range": [layers - 0.5, -0.5]},
        },
    }


def _tick(count: int, cell_px: int) -> int:
    """Label every, every 2nd, 5th or 10th ... row, so that labels keep 20 pixels apart."""
    return next((step for step in (1, 2, 5, 10, 20) if step * cell_px >= 20), count)


def _probability(score: float) -> str:
    """``.94``, the way the field writes a score below 1."""
    text = number(score)
    return text[1:] if text.startswith("0.") else text
