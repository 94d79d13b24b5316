"""A comparison as one table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitkeep.compare.graphs import render_graphs
from circuitkeep.compare.report import CheckpointResult, Report
from circuitkeep.compare.tasks import render_tasks
from circuitkeep.compare.terminal_tables import geometry_tables, replicates_table, transfer_table
from circuitkeep.compare.wording import (
    KINDS,
    UNITS,
    loss_difference,
    measured,
    moves,
    percent_interval,
    retention,
)
from circuitkeep.pages import number, percent, signed


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the table, which heads lost a job or took one up, replicates and what transfers.

    Intervals and differences go under their figures where the table is too wide. Where even that
    does not fit (many datasets), lines run past the edge rather than lose figures.
    """
    console = console or Console()
    # Measured against a width without limit: rich would report at most the console's own.
    unlimited = console.options.update(width=10_000)
    table = render_table(report)
    if console.measure(table, options=unlimited).minimum > console.width:
        table = render_table(report, stacked=True)
    _print_whole(table, console)
    for checkpoint in report.checkpoints:
        if said := moves(report, checkpoint):
            console.print(Text.assemble((checkpoint.name, "bold"), f": {said}"))
    further = [render_tasks(report)] if report.base.tasks else []
    further += [render_graphs(report)] if report.graph_parts else []
    further += geometry_tables(report) if report.base.geometry else []
    further += [replicates_table(report)] if report.replicates else []
    # With no further probe the first table says it all.
    if report.transfer and any(c.name not in report.circuits for c in report.transfer.columns):
        further += [transfer_table(report.transfer, kind) for kind in KINDS]
    for each in further:
        console.print()
        _print_whole(each, console)


def _print_whole(table: Table, console: Console) -> None:
    """Past the edge of a narrow terminal, rather than lose figures."""
    needed = console.measure(table, options=console.options.update(width=10_000)).minimum
    console.print(table, width=max(needed, console.width), crop=False, soft_wrap=False)


def render_table(report: Report, *, stacked: bool = False) -> Table:
    """The base, then every checkpoint; one line per circuit, the price in capability beside it.

    One table however many circuits there are: a checkpoint's name and losses stand on the first
    of its lines. Base values, intervals and differences are dim.

    Args:
        report: What to show.
        stacked: Put the dim figures under the bright ones, for narrow terminals.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        # A group of several lines needs air to be seen as one.
        leading=1 if stacked or len(report.circuits) > 1 else 0,
        caption=_caption(report),
        caption_justify="left",
    )
    width = max(len(checkpoint.name) for checkpoint in (report.base, *report.checkpoints))
    width = max(10, min(width, 13))
    # Room for an ordinary name on one line, or the table counts as too wide; see `print_report`.
    table.add_column("checkpoint", overflow="fold", min_width=10 if stacked else width)
    several = len(report.circuits) > 1  # a single one is named in the caption
    # Figures must not wrap: line n of every cell belongs to the same circuit.
    if several:
        table.add_column("circuit", no_wrap=True)
    # Rich would count the longest word of a cell as its least width; it is the longest line.
    checkpoints = (report.base, *report.checkpoints)
    for kind in KINDS:
        width = _widest(_shares(each, report, kind, stacked) for each in checkpoints)
        table.add_column(kind, justify="right", no_wrap=True, min_width=width)
    for dataset in report.base.capability:
        width = _widest(_loss(each, report, dataset, stacked) for each in checkpoints)
        table.add_column(Text(dataset), justify="right", overflow="fold", min_width=width)
    end = "\n" if stacked else ""
    for checkpoint in checkpoints:
        table.add_row(
            Text(checkpoint.name, style="bold"),
            *([Text("\n").join(Text(name + end) for name in report.circuits)] * several),
            *(_shares(checkpoint, report, kind, stacked) for kind in KINDS),
            *(_loss(checkpoint, report, dataset, stacked) for dataset in report.base.capability),
        )
    return table


def _shares(checkpoint: CheckpointResult, report: Report, kind: str, stacked: bool) -> Text:
    lines = []
    for circuit in report.circuits:
        result = checkpoint.circuits[circuit]
        share, interval = retention(result, kind)
        detail = percent_interval(interval).replace(" ", "")
        if checkpoint is report.base:
            value = measured(result, kind)
            detail = f"of {number(value)}" if isfinite(value) else ""
        lines.append(_figure(percent(share), detail, stacked))
    return Text("\n").join(lines)


def _widest(cells: Iterable[Text]) -> int:
    return max(len(line) for cell in cells for line in cell.plain.split("\n"))


def _loss(checkpoint: CheckpointResult, report: Report, dataset: str, stacked: bool) -> Text:
    difference = loss_difference(checkpoint, report.base, dataset)
    detail = "" if checkpoint is report.base else signed(difference)
    return _figure(number(checkpoint.capability[dataset]["loss_nats"], 3), detail, stacked)


def _figure(figure: str, detail: str, stacked: bool) -> Text:
    return Text.assemble(figure, "\n" if stacked else " " * bool(detail), (detail, "dim"))


def _caption(report: Report) -> Text:
    units = ", ".join(
        f"{name} in {UNITS[circuit.behaviour] or circuit.behaviour}"
        for name, circuit in report.circuits.items()
    )
    return Text(
        "Percent of the base's value [95% interval over held-out probe rows]. The base's own "
        "values: identity as mean attention score, causal in nats per answer, behaviour of "
        f"{units}. Datasets: loss in nats per token, difference to the base.",
        style="dim",
    )
