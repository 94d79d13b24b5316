"""What the commands show in the terminal: how far they are, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

Tell = Callable[[int, int], None]
"""Told how much is done, of how much."""


@contextmanager
def told(console: Console, what: str) -> Iterator[Tell]:
    """A bar that goes away at the end; none where the console is no terminal."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_wide(table: Table) -> None:
    """Print a table whose lines run past a narrow terminal's edge rather than lose figures."""
    console = Console()
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    # Told to `print`, a width beyond the console's own would be cut to it.
    console.width = max(needed, console.width)
    console.print(table, crop=False)
