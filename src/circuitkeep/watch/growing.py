"""A CSV file that somebody else is writing, read as it grows."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

Row = dict[str, str]

_TAIL_BYTES = 512
"""Compared before more is read: the file may have been rewritten in place, and be longer now."""


class GrowingCsv:
    """Hands out every row once.

    A line that is not whole yet is left for the next time. A file that was replaced, cut short or
    rewritten is read from its start again; Lightning's CSVLogger rewrites its own when a new
    column comes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._start_over()
        self._seen: tuple[int, ...] = ()

    def _start_over(self) -> None:
        self._header: list[str] | None = None
        self._offset = 0
        self._head = self._tail = b""

    def read(self) -> tuple[bool, list[Row]]:
        """What is new.

        Returns:
            Whether everything handed out before is void, and the new rows, cells by column. A file
            that is not there, or cannot be read now, has nothing new.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if seen == self._seen:
                    return False, []
                goes_on = seen[:2] == self._seen[:2] and file.read(len(self._head)) == self._head
                file.seek(self._offset - len(self._tail))
                void = self._offset > 0 and not (
                    goes_on and file.read(len(self._tail)) == self._tail
                )
                if void:
                    self._start_over()
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return False, []
        self._seen = seen
        return void, self._rows(new[: _whole(new)])

    def _rows(self, new: bytes) -> list[Row]:
        if not new:
            return []
        self._offset += len(new)
        self._tail = (self._tail + new)[-_TAIL_BYTES:]
        records = csv.reader(io.StringIO(new.decode("utf-8", "replace"), newline=""))
        try:
            lines = [record for record in records if record]
        except csv.Error:  # no CSV at all, such as a field of megabytes
            return []
        if self._header is None and lines:
            self._header, self._head = lines.pop(0), new[:_TAIL_BYTES]
        header = self._header or []
        return [dict(zip(header, line, strict=False)) for line in lines]


def _whole(text: bytes) -> int:
    """How many bytes are whole records: a line break between quotes ends none."""
    end = text.rfind(b"\n") + 1
    quotes = text.count(b'"', 0, end)
    while end and quotes % 2:
        before = text.rfind(b"\n", 0, end - 1) + 1
        quotes -= text.count(b'"', before, end)
        end = before
    return end
