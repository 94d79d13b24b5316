"""Replicates, the transfer matrix and geometry as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from circuitkeep.compare import geometry_page as geometry
from circuitkeep.compare import wording
from circuitkeep.compare.report import Interval, ReplicateGroup, Report, Transfer
from circuitkeep.manifolds.drift import Estimate
from circuitkeep.pages import percent


def replicates_table(report: Report) -> Table:
    """One line per group and circuit: what was kept over seeds, and the differences beneath."""
    first = report.replicates[0]
    table = _table(
        f"Over {len(first.checkpoints)} replicates each: 95% intervals for other rows and other "
        f"seeds. Beneath: the difference to {first.name}, seed by seed, p-values Holm-corrected."
    )
    lines = [
        [
            *(_kept(group, circuit, kind) for kind in wording.KINDS),
            *(_loss(group, dataset) if number == 0 else Text("") for dataset in first.losses),
        ]
        for group in report.replicates
        for number, circuit in enumerate(group.circuits)
    ]
    names = [
        (group.name if number == 0 else "", circuit)
        for group in report.replicates
        for number, circuit in enumerate(group.circuits)
    ]
    _add_names(table, "replicates", [name for name, _ in names])
    _add_names(table, "circuit", [circuit for _, circuit in names])
    _add_figures(table, [*wording.KINDS, *first.losses], lines)
    for (name, circuit), line in zip(names, lines, strict=True):
        table.add_row(Text(name, style="bold"), Text(circuit), *line)
    return table


def transfer_table(transfer: Transfer, kind: str) -> Table:
    """Trained on (rows) x probed on (columns): retention of one kind."""
    table = _table(f"{kind}: trained on (rows), probed on (columns)")
    _add_names(table, "trained on", [row.trained_on for row in transfer.rows])
    _add_names(table, "checkpoint", [row.name for row in transfer.rows])
    lines = [
        [_share(*row.shares[column.name][kind]) for column in transfer.columns]
        for row in transfer.rows
    ]
    _add_figures(table, [column.name for column in transfer.columns], lines)
    last = ""
    for row, line in zip(transfer.rows, lines, strict=True):
        origin = row.trained_on if row.trained_on != last else ""
        table.add_row(Text(origin, style="bold"), Text(row.name), *line)
        last = row.trained_on
    return table


def geometry_tables(report: Report) -> list[Table]:
    """How manifolds have moved, a line per checkpoint; and the maps of the named heads."""
    moved, lines, names = [], [], []
    of_heads, head_names = [], []
    for circuit, description in report.circuits.items():
        for name, manifold in description.manifolds.items():
            of = f"{circuit}, {name}"
            names.append((of, "halves of base"))
            lines.append([Text(geometry.null(f, manifold.null[f])) for f in geometry.HEADINGS])
            for each in report.checkpoints:
                drift = each.geometry[circuit].manifolds[name].drift
                names.append(("", each.name))
                lines.append([_drifted(f, drift[f]) for f in geometry.HEADINGS])
        for each in report.checkpoints:
            heads = each.geometry[circuit].heads if circuit in each.geometry else {}
            for number, (head, drift) in enumerate(heads.items()):
                head_names.append((circuit, "" if number else each.name, head))
                of_heads.append([Text(cell) for cell in geometry.head_figures(drift)])
    moved.append(
        _filled(
            "Manifolds against the base's, 95% intervals over rows. Place, translation, rotation "
            "and tilt are compared in the stream's own basis. Halves of base: what there is "
            "between random halves of its rows, in all but one of twenty draws.",
            ("manifold", "checkpoint"),
            names,
            tuple(geometry.HEADINGS.values()),
            lines,
        )
    )
    if of_heads:
        moved.append(
            _filled(
                "Maps of the named heads against the base's, in the stream's own basis.",
                ("circuit", "checkpoint", "head"),
                head_names,
                geometry.HEAD_HEADINGS,
                of_heads,
            )
        )
    return moved


def _filled(
    caption: str,
    headings: Sequence[str],
    names: Sequence[Sequence[str]],
    figures: Sequence[str],
    lines: Sequence[Sequence[Text]],
) -> Table:
    table = _table(caption)
    for heading, column in zip(headings, zip(*names, strict=True), strict=True):
        _add_names(table, heading, column)
    _add_figures(table, figures, lines)
    for (first, *others), line in zip(names, lines, strict=True):
        table.add_row(Text(first, style="bold"), *map(Text, others), *line)
    return table


def _drifted(figure: str, found: Estimate) -> Text:
    return _lines(geometry.said(figure, found.value), geometry.interval(figure, found))


def _table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        caption=Text(caption, style="dim"),
        caption_justify="left",
    )


def _add_names(table: Table, heading: str, names: Sequence[str]) -> None:
    """Ordinary names on one line."""
    table.add_column(heading, overflow="fold", min_width=min(16, max(map(len, names))))


def _add_figures(table: Table, names: Sequence[str], lines: Sequence[Sequence[Text]]) -> None:
    """Columns as wide as the longest line of a cell; rich would take the longest word."""
    for name, cells in zip(names, zip(*lines, strict=True), strict=True):
        width = max(len(part) for cell in cells for part in cell.plain.split("\n"))
        table.add_column(Text(name), justify="right", overflow="fold", min_width=width)


def _share(share: float, interval: Interval) -> Text:
    return Text.assemble(
        percent(share), " ", (wording.percent_interval(interval).replace(" ", ""), "dim")
    )


def _kept(group: ReplicateGroup, circuit: str, kind: str) -> Text:
    kept = group.circuits[circuit][kind]
    figure = " ".join(wording.share(kept.share)).strip()
    return _lines(figure, wording.gained(kept).replace("points", "pts"))


def _loss(group: ReplicateGroup, dataset: str) -> Text:
    kept = group.losses[dataset]
    figure, _ = wording.nats(kept.share)
    if kept.difference is None:
        return _lines(figure, "")
    said = wording.nats(kept.difference, sign=True)[0] + wording.p_value(kept.p_holm)
    return _lines(figure, said)


def _lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n" if second else "", (second, "dim"))
