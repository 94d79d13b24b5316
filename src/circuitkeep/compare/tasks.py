"""What the models of a report answer to the tasks of lm-evaluation-harness."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from circuitkeep.compare.report import CheckpointResult, Report
from circuitkeep.pages import number, signed

Column = tuple[str, str]


def columns(report: Report) -> list[Column]:
    """Task and metric of every figure, standard errors left out."""
    return [
        (task, metric)
        for task, values in report.base.tasks.items()
        for metric in values
        if not metric.endswith("_stderr")
    ]


def figure(checkpoint: CheckpointResult, column: Column) -> str:
    """``0.725 ± 0.071``: the value and its standard error, if it has one."""
    task, metric = column
    values = checkpoint.tasks[task]
    error = values.get(f"{metric}_stderr")
    return number(values[metric], 3) + ("" if error is None else f" ± {number(error, 3)}")


def difference(checkpoint: CheckpointResult, base: CheckpointResult, column: Column) -> str:
    """What it gained, with its sign."""
    task, metric = column
    return signed(checkpoint.tasks[task][metric] - base.tasks[task][metric])


def render_tasks(report: Report) -> Table:
    """A line per model and figure: value with its standard error, and the difference to the base.

    Down the page rather than across it, because tasks come in dozens.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("value ± standard error, difference", justify="right", no_wrap=True)
    for column in columns(report):
        for place, checkpoint in enumerate((report.base, *report.checkpoints)):
            first = ["", ""] if place else column
            gained = difference(checkpoint, report.base, column) if place else ""
            table.add_row(
                *map(Text, first),
                Text(checkpoint.name, style="bold"),
                Text.assemble(figure(checkpoint, column), " " * bool(place), (gained, "dim")),
            )
    return table
