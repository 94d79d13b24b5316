"""The geometry of a model, as JSON and CSV, and its heads as a table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from rich import box
from rich.table import Table

from circuitkeep.circuits import Head, did_you_mean
from circuitkeep.geometry.alignment import Alignment
from circuitkeep.geometry.channels import Channels
from circuitkeep.geometry.circuit import CircuitGeometry
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


def to_json(
    heads: Sequence[HeadGeometry],
    model: str,
    channels: Channels | None = None,
    circuit: CircuitGeometry | None = None,
) -> str:
    """Everything, with singular values, eigenvalues and scores; NaN becomes null.

    Of every pair of manifolds, scores between classes are kept for the `DRAWN` best heads.
    """
    content: dict[str, Any] = {
        "model": model,
        "heads": [
            {
                "head": head.head,
                **figures(head),
                "singular_values": head.singular_values,
                "eigenvalues": head.eigenvalues,
            }
            for head in heads
        ],
        "channels": channels,
        "circuit": None,
    }
    if circuit is not None:
        kept = {id(one) for one in best_of_pairs(circuit.alignments)}
        content["circuit"] = _plain(circuit)
        content["circuit"]["alignments"] = [
            {**_plain(one), "scores": one.scores if id(one) in kept else None}
            for one in circuit.alignments
        ]
    return json.dumps(_plain(content), indent=1, allow_nan=False)


DRAWN = 3
"""Heads of each pair of manifolds whose scores are kept and drawn."""


def best_of_pairs(found: Iterable[Alignment], most: int = DRAWN) -> list[Alignment]:
    """The first heads of every pair of manifolds, boundary heads before others."""
    seen: Counter[tuple[str, str]] = Counter()
    best = []
    for one in sorted(found, key=lambda one: not one.is_boundary):
        seen[one.query, one.key] += 1
        if seen[one.query, one.key] <= most:
            best.append(one)
    return best


def _plain(value: Any) -> Any:
    """What JSON can hold: heads by name, records as mappings, and no NaN."""
    if isinstance(value, Head):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_csv(heads: Sequence[HeadGeometry]) -> str:
    """A line per head; a cell is empty where there is no figure."""
    return _csv([{"head": head.head, **figures(head)} for head in heads], ("head", *COLUMNS))


def manifolds_csv(circuit: CircuitGeometry) -> str:
    """A line per manifold: all of it that is one number."""
    rows = []
    for shape in circuit.shapes:
        one = shape.manifold
        rows.append(
            {
                "manifold": one.name,
                "variable": one.variable,
                "layer": one.layer,
                "classes": one.classes,
                **{
                    field.name: getattr(shape, field.name)
                    for field in fields(shape)
                    if isinstance(getattr(shape, field.name), int | float)
                },
                **{f"ripple_{name}": value for name, value in shape.ripple._asdict().items()},
                **{f"probe_{name}": value for name, value in shape.probe._asdict().items()},
            }
        )
    return _csv(rows, rows[0])


def alignments_csv(circuit: CircuitGeometry) -> str:
    """A line per pair of manifolds and head that reads both."""
    columns = [field.name for field in fields(Alignment) if field.name != "scores"]
    rows = [
        {**{name: getattr(one, name) for name in columns}, "is_boundary": one.is_boundary}
        for one in circuit.alignments
    ]
    return _csv(rows, (*columns, "is_boundary"))


def _csv(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return value
