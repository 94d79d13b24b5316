"""How far a comparison is: a bar with the time left, for `circuitkeep.compare.measure.compare`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


@contextmanager
def progress_bar(models: int, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A bar that goes on by one model at every call; the call names the model that comes next.

    Above the bar stands what every model took. All of it is left out where the console is no
    terminal, but for a last line: how long a model took on average.

    Args:
        models: How many there are, the base included.
        console: Where to draw; standard error if None.
    """
    console = console or Console(stderr=True)
    bar = Progress(
        # A checkpoint's name is no markup.
        TextColumn("measuring {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Models take minutes, and rich would forget a pace after 30 seconds.
        speed_estimate_period=24 * 3600,
    )
    task = bar.add_task("", total=models)
    name, started = "", time.monotonic()
    took: list[float] = []

    def done() -> None:
        if name:
            bar.advance(task)
            took.append(time.monotonic() - started)
            if console.is_terminal:
                console.print(Text(f"measured {name} in {took[-1]:.1f} s", style="dim"))

    def begin(following: str) -> None:
        nonlocal name, started
        done()
        name, started = following, time.monotonic()
        bar.update(task, description=following, refresh=True)

    with bar:
        bar.advance(task, 0)  # the pace counts from here
        yield begin
        done()
        whole = sum(took)
        each = whole / len(took) if took else 0.0
        console.print(f"{len(took)} models in {whole:.1f} s, {each:.1f} s each", style="dim")
