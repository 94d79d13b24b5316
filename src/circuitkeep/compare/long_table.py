"""Every figure of a report as one long table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite

from circuitkeep.compare.moved import GeometryResult
from circuitkeep.compare.report import CheckpointResult, CircuitResult, ReplicateGroup, Report
from circuitkeep.compare.wording import KINDS, measured, retention

COLUMNS = (
    *("checkpoint", "step", "trained_on"),
    *("of", "role", "head", "quantity", "value", "low", "high"),
)
Row = tuple[str, str, str, str, float, float, float]
NAN = float("nan")


def to_csv(report: Report) -> str:
    """One line per figure: of which checkpoint, which circuit or dataset, role and head.

    A cell is empty where it does not apply, or its value is NaN. ``low`` and ``high`` are the
    bounds of the 95% interval over probe rows; of a group of replicates, whose name stands as the
    checkpoint, over rows and seeds.
    """
    steps: dict[str, int] = {}
    if report.steps:
        names = [checkpoint.name for checkpoint in report.checkpoints]
        steps = dict(zip(names, report.steps, strict=True))
    rows = [] if report.transfer is None else report.transfer.rows
    origins = {row.name: row.trained_on for row in rows}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for name, *words, value, low, high in _all_rows(report):
        figures = ["" if not isfinite(each) else repr(each) for each in (value, low, high)]
        table.writerow([name, steps.get(name, ""), origins.get(name, ""), *words, *figures])
    return text.getvalue()


def _all_rows(report: Report) -> Iterator[tuple[str, str, str, str, str, float, float, float]]:
    for checkpoint in (report.base, *report.checkpoints):
        for row in _rows(checkpoint):
            yield checkpoint.name, *row
    for group in report.replicates:
        for row in _of_group(group):
            yield group.name, *row
    if report.transfer is not None:
        # The others stand there already.
        further = [c.name for c in report.transfer.columns if c.name not in report.circuits]
        for of in report.transfer.rows:
            for column in further:
                for kind, (share, (low, high)) in of.shares[column].items():
                    yield of.name, column, "", "", f"{kind}_retention", share, low, high


def _of_group(group: ReplicateGroup) -> Iterator[Row]:
    figures = {(dataset, "loss_nats", "loss_nats"): one for dataset, one in group.losses.items()}
    for circuit, kinds in group.circuits.items():
        figures |= {(circuit, f"{kind}_retention", kind): one for kind, one in kinds.items()}
    for (of, quantity, name), one in figures.items():
        yield of, "", "", quantity, one.share.mean, one.share.low, one.share.high
        if one.difference is not None:
            found = one.difference
            yield of, "", "", f"{name}_difference", found.mean, found.low, found.high
            yield of, "", "", f"{name}_difference_p_holm", one.p_holm, NAN, NAN
            yield of, "", "", f"{name}_difference_effect_size", one.effect_size, NAN, NAN


def _rows(checkpoint: CheckpointResult) -> Iterator[Row]:
    for task, figures in checkpoint.tasks.items():
        for metric, value in figures.items():
            yield task, "", "", metric, value, NAN, NAN
    for dataset, values in checkpoint.capability.items():
        for quantity, value in values.items():
            yield dataset, "", "", quantity, value, NAN, NAN
    for circuit, found in checkpoint.graphs.items():
        yield circuit, "", "", "graph_shared", found.shared, *found.interval
        yield circuit, "", "", "graph_other_prompts", found.other_prompts, NAN, NAN
    for circuit, moved in checkpoint.geometry.items():
        yield from _of_geometry(circuit, moved)
    if checkpoint.explained is not None:
        yield "", "", "", "transcoder_explained_variance", checkpoint.explained, NAN, NAN
    for circuit, result in checkpoint.circuits.items():
        for kind in KINDS:
            share, (low, high) = retention(result, kind)
            yield circuit, "", "", f"{kind}_retention", share, low, high
        for kind, quantity in (("causal", "causal_effect_nats"), ("behaviour", "behaviour")):
            yield circuit, "", "", quantity, measured(result, kind), NAN, NAN
        for head, said in result.contributions.items():
            yield circuit, "", head, "contribution_logits", said, NAN, NAN
        yield from _of_roles(circuit, result)


def _of_geometry(circuit: str, moved: GeometryResult) -> Iterator[Row]:
    for name, manifold in moved.manifolds.items():
        for figure, found in manifold.drift.items():
            yield circuit, "", "", f"manifold/{name}/{figure}", found.value, found.low, found.high
        yield circuit, "", "", f"manifold/{name}/explained", manifold.explained, NAN, NAN
    for head, drift in moved.heads.items():
        for figure, value in asdict(drift).items():
            yield circuit, "", head, figure, value, NAN, NAN


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
