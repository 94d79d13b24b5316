"""One training's log: its numbers as columns over steps, and what of them is new."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

from circuitkeep.watch.growing import GrowingCsv, Row

Key = tuple[str, ...]
"""``("metrics", key)`` with one column, or ``("heads", circuit, role, quantity)`` by head."""

FILES = ("metrics.csv", "heads.csv")
_NOT_PLOTTED = ("step", "epoch")


class Table:
    """Columns of numbers over steps; None where there is no number.

    Steps only grow. One that goes back (a run was resumed from an earlier checkpoint) drops what
    stands behind it; the same step once more overwrites.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.columns: dict[str, list[float | None]] = {}
        self._changed: list[int] = []

    def put(self, step: int, name: str, value: float | None, row: int) -> None:
        """Enter `value`, which stands in line `row` of all that was read."""
        while self.steps and self.steps[-1] > step:
            for values in (self.steps, self._changed, *self.columns.values()):
                values.pop()
        if not self.steps or self.steps[-1] < step:
            self.steps.append(step)
            self._changed.append(row)
            for column in self.columns.values():
                column.append(None)
        if name not in self.columns:
            self.columns[name] = [None] * len(self.steps)
        self.columns[name][-1] = value
        self._changed[-1] = row

    def since(self, row: int) -> dict[str, Any] | None:
        """All steps from the first on that line `row` or a later one changed; None if none did.

        Whoever has the table as it was then drops the first of these steps and all behind it, and
        appends these.
        """
        first = len(self.steps)
        while first and self._changed[first - 1] >= row:
            first -= 1
        if first == len(self.steps):
            return None
        columns = {name: values[first:] for name, values in self.columns.items()}
        return {"steps": self.steps[first:], "columns": columns}


class Log:
    """``metrics.csv`` and ``heads.csv`` of one folder, followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables: dict[Key, Table] = {}
        self._files = {name: GrowingCsv(folder / name) for name in FILES}
        self._generation = secrets.token_hex(4)
        self._rows = 0

    def refresh(self) -> None:
        """Read what was written since."""
        for name, file in self._files.items():
            void, rows = file.read()
            kind = name.removesuffix(".csv")
            if void:
                self._generation = secrets.token_hex(4)
                self.tables = {k: table for k, table in self.tables.items() if k[0] != kind}
            for row in rows:
                step = _number(row.get("step", ""))
                if step is not None:
                    (self._put_heads if kind == "heads" else self._put_metrics)(int(step), row)
                    self._rows += 1

    def since(self, cursor: str) -> dict[str, Any]:
        """What is new to a page that was last told `cursor`: see `Table.since`.

        ``reset`` tells it to forget everything first; it is so for an empty or unknown cursor.
        """
        generation, _, row = cursor.partition(":")
        known = generation == self._generation and row.isdecimal()
        found = {key: table.since(int(row) if known else 0) for key, table in self.tables.items()}
        return {
            "cursor": f"{self._generation}:{self._rows}",
            "reset": not known,
            "tables": [{"key": key, **new} for key, new in found.items() if new],
        }

    def _put_metrics(self, step: int, row: Row) -> None:
        for key, cell in row.items():
            if cell and key not in _NOT_PLOTTED and _is_number(cell):
                self._table("metrics", key).put(step, "", _number(cell), self._rows)

    def _put_heads(self, step: int, row: Row) -> None:
        names = [row.get(name, "") for name in ("circuit", "role", "head")]
        if not all(names):
            return
        for quantity in ("score", "retention"):
            value = _number(row.get(quantity, ""))
            self._table("heads", *names[:2], quantity).put(step, names[2], value, self._rows)

    def _table(self, *key: str) -> Table:
        return self.tables.setdefault(key, Table())


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float | None:
    """Five digits, which are more than a plot shows; None for what is not finite, or no number."""
    if not _is_number(cell) or not math.isfinite(float(cell)):
        return None
    return float(f"{float(cell):.5g}")
