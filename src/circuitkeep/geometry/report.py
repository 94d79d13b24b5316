"""The geometry of a model's heads, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from rich import box
from rich.table import Table

from circuitkeep.circuits import did_you_mean
from circuitkeep.geometry.heads import HeadGeometry, MapGeometry
from circuitkeep.pages import number

_OF_A_MAP = tuple(field.name for field in fields(MapGeometry))
COLUMNS = (
    *(f"ov_{name}" for name in _OF_A_MAP),
    *(f"qk_{name}" for name in _OF_A_MAP),
    "translation",
)
_SHOWN = {
    "ov_norm": "OV norm",
    "ov_effective_rank": "rank",
    "ov_rotation": "not rotated",
    "ov_projection": "not projected",
    "ov_gain": "gain",
    "ov_eigenvalue_score": "eigenvalues",
    "ov_eigenvalue_angle": "angle",
    "qk_norm": "QK norm",
    "qk_effective_rank": "rank",
    "qk_eigenvalue_score": "eigenvalues",
}


def figures(head: HeadGeometry) -> dict[str, float]:
    """All of a head that is one number, by `COLUMNS`."""
    return {
        **{f"ov_{name}": value for name, value in asdict(head.ov).items()},
        **{f"qk_{name}": value for name, value in asdict(head.qk).items()},
        "translation": head.translation,
    }


def ordered(heads: Sequence[HeadGeometry], column: str | None) -> list[HeadGeometry]:
    """From the largest to the smallest figure; as they are if None.

    Raises:
        ValueError: If there is no such column.
    """
    if column is None:
        return list(heads)
    if column not in COLUMNS:
        raise ValueError(
            f"sort={column} is none of {', '.join(COLUMNS)}{did_you_mean(column, COLUMNS)}"
        )

    def key(head: HeadGeometry) -> float:
        value = figures(head)[column]
        return math.inf if math.isnan(value) else -value

    return sorted(heads, key=key)


def table(heads: Sequence[HeadGeometry]) -> Table:
    """The figures that say most, a line per head."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("head")
    for name in _SHOWN.values():
        shown.add_column(name, justify="right")
    for head in heads:
        values = figures(head)
        shown.add_row(str(head.head), *(number(values[name]) for name in _SHOWN))
    return shown


def to_json(heads: Sequence[HeadGeometry], model: str) -> str:
    """Everything, with singular values and eigenvalues; NaN becomes null."""
    content: dict[str, Any] = {
        "model": model,
        "heads": [
            {
                "head": str(head.head),
                **{
                    name: value if math.isfinite(value) else None
                    for name, value in figures(head).items()
                },
                "singular_values": head.singular_values,
                "eigenvalues": head.eigenvalues,
            }
            for head in heads
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def to_csv(heads: Sequence[HeadGeometry]) -> str:
    """A line per head; a cell is empty where there is no figure."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["head", *COLUMNS])
    for head in heads:
        values = figures(head).values()
        rows.writerow([head.head, *(repr(v) if math.isfinite(v) else "" for v in values)])
    return text.getvalue()
