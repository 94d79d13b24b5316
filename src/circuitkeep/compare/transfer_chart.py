"""The matrix of what was trained on and what was probed, as a plotly.js figure."""

from __future__ import annotations

from math import isfinite

from circuitkeep.compare.charts import Chart, label
from circuitkeep.compare.report import Transfer
from circuitkeep.compare.wording import KINDS, percent_interval
from circuitkeep.pages import number, percent

CELL_PX, LINE_PX = 96, 34
LETTER_PX = 7.2
"""Of a letter in row names."""
LONGEST = 34
"""Letters of a row's name that are written out."""


def transfer_chart(transfer: Transfer) -> Chart:
    """One row per checkpoint, one column per probe; a frame for each kind of retention.

    The colours end at the base's value (100%); what is more is written, not coloured.
    """
    names = [row_name(row.name, row.trained_on) for row in transfer.rows]
    columns = [column.name for column in transfer.columns]
    frames = [{"name": kind, "data": [_cells(transfer, kind)]} for kind in KINDS]
    left = min(LETTER_PX * max(map(len, names)), LETTER_PX * LONGEST) + 14
    axis = {"fixedrange": True, "showgrid": False, "zeroline": False, "ticks": ""}
    return {
        "data": [
            {
                "type": "heatmap",
                "zmin": 0,
                "zmax": 1,
                "colorscale": [[stop / 4, f"var(--heat-{stop})"] for stop in range(5)],
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
                "hoverinfo": "text",
            }
        ],
        "layout": {
            "width": left + CELL_PX * len(columns) + 8,
            "height": LINE_PX * len(names) + 64,
            "margin": {"l": left, "r": 8, "t": 56, "b": 8},
            "dragmode": False,
            "xaxis": axis
            | {
                "side": "top",
                "tickvals": list(range(len(columns))),
                "ticktext": [_folded(column) for column in columns],
                "tickangle": 0,
                "range": [-0.5, len(columns) - 0.5],
            },
            "yaxis": axis
            | {
                "tickvals": list(range(len(names))),
                "ticktext": [label(_short(name)) for name in names],
                "range": [len(names) - 0.5, -0.5],
            },
        },
        "frames": frames,
    }


def row_name(name: str, trained_on: str) -> str:
    """What a row was trained on, and its name where that says more."""
    return name if trained_on in ("", name) else f"{trained_on}: {name}"


def _cells(transfer: Transfer, kind: str) -> Chart:
    values, hover, annotations = [], [], []
    for y, row in enumerate(transfer.rows):
        own = [row.shares[column.name][kind] for column in transfer.columns]
        values.append([round(share, 4) if isfinite(share) else None for share, _ in own])
        hover.append(
            [
                f"trained on {label(row.trained_on)}: {label(row.name)}<br>probed on "
                f"{label(column.name)}<br>{kind} {percent(share)} {percent_interval(interval)}"
                f"<br>of the base's {number(column.base[kind])}"
                for column, (share, interval) in zip(transfer.columns, own, strict=True)
            ]
        )
        annotations += [
            {
                "x": x,
                "y": y,
                "text": percent(share),
                "showarrow": False,
                # The upper half of the ramp is too strong for ink.
                "font": {"color": "var(--paper)" if share > 0.55 else "var(--ink)", "size": 12.5},
            }
            for x, (share, _) in enumerate(own)
        ]
    return {"type": "heatmap", "z": values, "text": hover, "annotations": annotations}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 12]}…{text[-11:]}"


def _folded(text: str) -> str:
    """A column's name on lines of about a cell's width."""
    lines = [""]
    for word in text.replace(", ", ",\n").replace("\n", " ").split(" "):
        if lines[-1] and len(lines[-1]) + len(word) > 12:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(label(line if len(line) <= 14 else f"{line[:12]}…") for line in lines[:3])
