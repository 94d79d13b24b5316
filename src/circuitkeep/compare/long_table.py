"""Every figure of a report as one long table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from math import isfinite

from circuitkeep.compare.report import CheckpointResult, CircuitResult, Report
from circuitkeep.compare.wording import KINDS, measured, retention

COLUMNS = ("checkpoint", "step", "of", "role", "head", "quantity", "value", "low", "high")
Row = tuple[str, str, str, str, float, float, float]
NAN = float("nan")


def to_csv(report: Report) -> str:
    """One line per figure: of which checkpoint, which circuit or dataset, role and head.

    A cell is empty where it does not apply, or its value is NaN. ``low`` and ``high`` are the
    bounds of the 95% interval over probe rows.
    """
    steps: dict[str, int] = {}
    if report.steps:
        names = [checkpoint.name for checkpoint in report.checkpoints]
        steps = dict(zip(names, report.steps, strict=True))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for checkpoint in (report.base, *report.checkpoints):
        for *words, value, low, high in _rows(checkpoint):
            figures = ["" if not isfinite(each) else repr(each) for each in (value, low, high)]
            table.writerow([checkpoint.name, steps.get(checkpoint.name, ""), *words, *figures])
    return text.getvalue()


def _rows(checkpoint: CheckpointResult) -> Iterator[Row]:
    for dataset, values in checkpoint.capability.items():
        for quantity, value in values.items():
            yield dataset, "", "", quantity, value, NAN, NAN
    for circuit, result in checkpoint.circuits.items():
        for kind in KINDS:
            share, (low, high) = retention(result, kind)
            yield circuit, "", "", f"{kind}_retention", share, low, high
        for kind, quantity in (("causal", "causal_effect_nats"), ("behaviour", "behaviour")):
            yield circuit, "", "", quantity, measured(result, kind), NAN, NAN
        for head, said in result.contributions.items():
            yield circuit, "", head, "contribution_logits", said, NAN, NAN
        yield from _of_roles(circuit, result)


def _of_roles(circuit: str, result: CircuitResult) -> Iterator[Row]:
    for role, layers in result.scores.items():
        ranking = result.rankings[role]
        yield circuit, role, "", "spearman", ranking.spearman, NAN, NAN
        yield circuit, role, "", "top_named", ranking.top_named, NAN, NAN
        yield circuit, role, "", "top_10", ranking.top_10, NAN, NAN
        for quantity in ("lost", "risen"):
            for head in getattr(result.moved[role], quantity):
                yield circuit, role, head, quantity, 1.0, NAN, NAN
        for layer, scores in enumerate(layers):
            for index, score in enumerate(scores):
                yield circuit, role, f"L{layer}H{index}", "score", score, NAN, NAN
