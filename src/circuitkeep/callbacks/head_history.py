"""The named heads of circuits over a training: one long table, and the forms it is shown in."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Circuit, Head
from circuitkeep.evals.circuit import CircuitMeasurement
from circuitkeep.files import replacing

Row = tuple[int, str, str, str, float | None, float | None]
"""Step, circuit, role, head, score, retention; None where there is no number."""
LongRow = tuple[int, str, str, str, str, float]
"""Step, circuit, role, head, "score" or "retention", and its value."""

COLUMNS = ("step", "circuit", "role", "head", "score", "retention")
LONG_COLUMNS = ("step", "circuit", "role", "head", "quantity", "value")
MAX_STEPS = 120
"""Heatmaps show at most so many steps, evenly thinned; tables show all."""
STOPS = torch.tensor(
    [[238, 242, 246], [188, 211, 230], [118, 169, 207], [47, 117, 174], [8, 48, 95]]
)
"""Red, green and blue from the lowest score to the highest, as on the comparison page."""
LETTER_PX, LINE_PX, IMAGE_CELL_PX = 8, 18, 16
TOPS = (0.1, 0.25, 0.5, 1.0)
"""Scores at which the colours may end; the first that no score exceeds is taken."""

_STYLE = """
body { margin: 16px; background: #fff; color: #1b1f24; font: 13px/1.5 system-ui, sans-serif; }
h1 { font-size: 16px; margin: 0; } h2 { font-size: 13px; margin: 18px 0 4px; }
p { color: #5a636e; margin: 2px 0; } figure { margin: 0; } figcaption { font-weight: 600; }
.maps { display: flex; flex-wrap: wrap; gap: 20px; }
svg { display: block; font-size: 12px; font-variant-numeric: tabular-nums; }
text { fill: #1b1f24; } .quiet { fill: #5a636e; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .named { fill: none; stroke: #d9480f; stroke-width: 2; }
"""


class HeadHistory:
    """Scores of the named heads, evaluation by evaluation.

    Attributes:
        rows: The table, in the order of measurement.
        maps: Circuit -> role -> the latest scores of all heads of the model.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: list[Row] = [tuple(row) for row in rows]  # type: ignore[misc]
        self.maps: dict[str, dict[str, Float[Tensor, "layer head"]]] = {}
        self._written: dict[Path, int] = {}

    def add(
        self, step: int, circuit: Circuit, now: CircuitMeasurement, base: CircuitMeasurement
    ) -> None:
        """Append a measurement, unless there is one of that step.

        A head's retention is its score over its score in `base`.
        """
        self.maps[circuit.name] = {
            role.name: now.scores[role.name].nanmean(0) for role in circuit.roles
        }
        if (step, circuit.name) in {row[:2] for row in self.rows}:
            return
        for role, head in _named(circuit):
            score, before = now.score(role, head), base.score(role, head)
            retention = score / before if before > 0 else math.nan
            self.rows.append(
                (step, circuit.name, role, str(head), _number(score), _number(retention))
            )

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Bring a file up to date.

        The first time the whole table is written, in place of whatever an earlier run left; from
        then on rows are appended, so that a crash costs no more than the line being written.

        Raises:
            OSError: If it cannot be written.
        """
        path = Path(path)
        done = self._written.get(path, 0)
        if done == 0:
            with replacing(path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *self.rows])
        else:
            with path.open("a", newline="") as file:
                csv.writer(file).writerows(self.rows[done:])
        self._written[path] = len(self.rows)

    def long_rows(self, max_rows: int) -> list[LongRow]:
        """The table with one number to a row; `LONG_COLUMNS` are its columns.

        Longer tables are thinned evenly, whole steps at a time; the last step stays.
        """
        steps = sorted({row[0] for row in self.rows})
        most = max(1, max_rows * len(steps) // max(1, 2 * len(self.rows)))
        kept = {steps[number] for number in _thinned(len(steps), most)}
        return [
            (*row[:4], quantity, value)
            for row in self.rows
            if row[0] in kept
            for quantity, value in zip(COLUMNS[4:], row[4:], strict=True)
            if value is not None
        ]

    def scores(
        self, circuit: Circuit
    ) -> tuple[list[int], list[str], Float[Tensor, "head step"], Float[Tensor, "head step"]]:
        """The circuit's series.

        Returns:
            The steps, thinned to `MAX_STEPS`; a label per named head, in the circuit's order;
            their scores and their retentions, NaN where there is none.
        """
        named = [(role, str(head)) for role, head in _named(circuit)]
        mine = [row for row in self.rows if row[1] == circuit.name]
        taken = len(mine) // len(named)
        kept = _thinned(taken, MAX_STEPS)
        steps = [mine[number * len(named)][0] for number in kept]
        columns = [mine[number * len(named) : (number + 1) * len(named)] for number in kept]
        values = torch.tensor(
            [[[math.nan if x is None else x for x in row[4:]] for row in rows] for rows in columns]
        )
        labels = [f"{role} {head}" for role, head in named]
        return steps, labels, values[..., 0].T, values[..., 1].T

    def top(self, circuit: Circuit) -> float:
        """The score that the darkest colour stands for; see `TOPS`."""
        found = [row[4] for row in self.rows if row[1] == circuit.name and row[4] is not None]
        found += [scores.nan_to_num().max().item() for scores in self.maps[circuit.name].values()]
        return next((top for top in TOPS if top >= max(found)), 1.0)

    def image(self, circuit: Circuit) -> Float[Tensor, "3 height width"]:
        """Step (to the right) by named head (down), in [0, 1]; `IMAGE_CELL_PX` to a cell."""
        cells = (
            colours(self.scores(circuit)[2] / self.top(circuit)).float().div(255).permute(2, 0, 1)
        )
        pixels = cells.repeat_interleave(IMAGE_CELL_PX, 1).repeat_interleave(IMAGE_CELL_PX, 2)
        pixels[:, IMAGE_CELL_PX - 1 :: IMAGE_CELL_PX] = 1.0
        return pixels

    def html(self, circuit: Circuit) -> str:
        """A page without scripts: the named heads over the steps, and every head now."""
        steps, top = self.scores(circuit)[0], self.top(circuit)
        maps = "".join(
            f"<figure><figcaption>{escape(role.name)}</figcaption>"
            f"{_head_map(self.maps[circuit.name][role.name], role.heads, top)}</figure>"
            for role in circuit.roles
        )
        return (
            f'<!doctype html><meta charset="utf-8"><title>{escape(circuit.name)}</title>'
            f"<style>{_STYLE}</style><h1>{escape(circuit.name)}</h1>"
            "<p>Attention that heads pay to what their role attends to, on held-out prompts.</p>"
            f"{_legend(top)}<h2>The named heads, step by step</h2>{self._series(circuit)}"
            f"<h2>Every head at step {steps[-1]}</h2>"
            "<p>Layers downwards, heads to the right; the named ones are outlined.</p>"
            f'<div class="maps">{maps}</div>'
        )

    def _series(self, circuit: Circuit) -> str:
        steps, labels, scores, retentions = self.scores(circuit)
        share = scores / self.top(circuit)
        cell = max(6, min(28, 720 // len(steps)))
        left = LETTER_PX * max(len(label) for label in labels) + 12
        right = left + cell * len(steps)
        marks = []
        for line, (label, row) in enumerate(zip(labels, scores.tolist(), strict=True)):
            middle = LINE_PX * line + 13
            titles = [
                f"step {step}: {_short(score)}" for step, score in zip(steps, row, strict=True)
            ]
            marks += [
                _text(left - 8, middle, label, "end"),
                _cells(share[line : line + 1], titles, left, LINE_PX * line, cell, LINE_PX),
                _text(right + 34, middle, _short(row[-1]), "end"),
                _text(right + 88, middle, _percent(retentions[line, -1].item()), "quiet end"),
            ]
        bottom = LINE_PX * len(labels)
        apart = math.ceil((LETTER_PX * len(str(steps[-1])) + 10) / cell)
        marks += [
            _text(left + cell * (number + 0.5), bottom + 15, str(steps[number]), "quiet middle")
            for number in range(0, len(steps), apart)
        ]
        marks += [
            _text(left - 8, bottom + 15, "step", "quiet end"),
            _text(right + 34, bottom + 15, "now", "quiet end"),
            _text(right + 88, bottom + 15, "of base", "quiet end"),
        ]
        return _svg(right + 92, bottom + 20, marks)


def colours(values: Float[Tensor, "*shape"]) -> torch.Tensor:
    """Red, green and blue (uint8, in a last axis) of numbers in [0, 1]; white for NaN."""
    place = values.nan_to_num().clamp(0, 1) * (len(STOPS) - 1)
    below = place.floor().clamp(max=len(STOPS) - 2).long()
    share = (place - below)[..., None]
    mixed = STOPS[below] * (1 - share) + STOPS[below + 1] * share
    return mixed.round().masked_fill(values.isnan()[..., None], 255).to(torch.uint8)


def _named(circuit: Circuit) -> list[tuple[str, Head]]:
    return [(role.name, head) for role in circuit.roles for head in role.heads]


def _thinned(n: int, most: int) -> list[int]:
    """At most `most` of the numbers below `n`, evenly, the last of them always."""
    if most == 1:
        return [n - 1]
    return torch.linspace(0, n - 1, min(n, most)).round().long().tolist()


def _head_map(scores: Float[Tensor, "layer head"], named: Sequence[Head], top: float) -> str:
    layers, heads = scores.shape
    cell = max(6, min(24, 200 // max(layers, heads)))
    left, apart = 24, [math.ceil(px / cell) for px in (16, LETTER_PX * len(str(heads - 1)) + 6)]
    titles = [
        f"L{layer}H{head}: {_short(score)}"
        for layer, row in enumerate(scores.tolist())
        for head, score in enumerate(row)
    ]
    marks = [_cells(scores / top, titles, left, 0, cell, cell)]
    marks += [
        f'<rect class="named" x="{left + head.index * cell + 1}" y="{head.layer * cell + 1}" '
        f'width="{cell - 2}" height="{cell - 2}"/>'
        for head in named
    ]
    marks += [
        _text(left - 6, cell * (layer + 0.5) + 4, str(layer), "quiet end")
        for layer in range(0, layers, apart[0])
    ]
    marks += [
        _text(left + cell * (head + 0.5), cell * layers + 14, str(head), "quiet middle")
        for head in range(0, heads, apart[1])
    ]
    return _svg(left + cell * heads + 4, cell * layers + 18, marks)


def _legend(top: float) -> str:
    scale = torch.linspace(0, 1, 41)[None]
    marks = [
        _text(0, 13, "score 0"),
        _cells(scale, [""] * 41, 54, 3, 4, 12),
        _text(224, 13, f"{top:g}"),
    ]
    return _svg(280, LINE_PX, marks)


def _cells(
    shares: Float[Tensor, "row column"],
    titles: Sequence[str],
    x: int,
    y: int,
    width: int,
    height: int,
) -> str:
    gap = 1 if width > 7 else 0
    rects = []
    for number, (red, green, blue) in enumerate(colours(shares).flatten(0, 1).tolist()):
        row, column = divmod(number, shares.shape[1])
        rects.append(
            f'<rect x="{x + column * width}" y="{y + row * height}" width="{width - gap}" '
            f'height="{height - 1}" fill="#{red:02x}{green:02x}{blue:02x}">'
            f"<title>{titles[number]}</title></rect>"
        )
    return "".join(rects)


def _text(x: int | float, y: int | float, text: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def _svg(width: int, height: int, marks: Sequence[str]) -> str:
    return f'<svg width="{width}" height="{height}">{"".join(marks)}</svg>'


def _short(score: float) -> str:
    """``.94``, the way the field writes a score below 1."""
    text = f"{score:.2f}"
    return "–" if math.isnan(score) else text[1:] if text.startswith("0") else text


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
