"""A sweep as one table for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitkeep.compare.wording import KINDS
from circuitkeep.sweeps import wording
from circuitkeep.sweeps.report import GroupResult, SweepReport


def print_report(report: SweepReport, console: Console | None = None) -> None:
    """Print the table; lines run past the edge of a narrow terminal rather than lose figures."""
    console = console or Console()
    table = render_table(report)
    needed = console.measure(table, options=console.options.update(width=10_000)).minimum
    width = console.width
    # Told to `print`, a width beyond the console's own would be cut to it.
    console.width = max(needed, width)
    console.print(table, crop=False)
    console.width = width
    for name in report.unfinished:
        console.print(f"not finished, and in no figure: {name}", style="bold", markup=False)


def render_table(report: SweepReport) -> Table:
    """One line per setting and circuit: what was kept, and the price beside it."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        leading=1,
        caption=Text(wording.about(report) + " * marks the Pareto front.", style="dim"),
        caption_justify="left",
    )
    several = len(report.circuits) > 1
    titles = [
        Text(group.label + " *" * (circuit in group.front), style="bold")
        for group in report.groups
        for circuit in report.circuits
    ]
    table.add_column("setting", overflow="fold", min_width=min(24, max(map(len, titles))))
    lines = [
        [
            *([Text(circuit)] * several),
            Text(str(len(group.seeds))),
            *(_kept(group, circuit, kind) for kind in KINDS),
            _price(group),
        ]
        for group in report.groups
        for circuit in report.circuits
    ]
    names = [*["circuit"] * several, "n", *KINDS, report.price]
    for number, name in enumerate(names):
        # Rich would count the longest word of a cell as its least width; it is the longest line.
        width = max(len(part) for line in lines for part in line[number].plain.split("\n"))
        side = "left" if name == "circuit" else "right"
        table.add_column(Text(name), justify=side, no_wrap=True, min_width=width)
    for title, line in zip(titles, lines, strict=True):
        table.add_row(title, *line)
    return table


def _kept(group: GroupResult, circuit: str, kind: str) -> Text:
    kept = group.circuits[circuit][kind]
    figure, interval = wording.share(kept.share)
    return _lines(f"{figure} {interval}".strip(), wording.gained(kept).replace("points", "pts"))


def _price(group: GroupResult) -> Text:
    figure, interval = wording.nats(group.price)
    if group.price_difference is None:
        return _lines(f"{figure} {interval}".strip(), "")
    difference, bounds = wording.nats(group.price_difference, sign=True)
    p = wording.p_value(group.price_p_holm).removeprefix(", ")
    return _lines(figure, "\n".join(part for part in (f"{difference} {bounds}".strip(), p) if part))


def _lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n" if second else "", (second, "dim"))
