"""Everything that the nightly runs measured: one SQLite file, to which one can only append.

A run is written in one transaction: whoever reads sees all of it or nothing, also after a crash. A
rollback journal is kept, not a write-ahead log, so that at rest the history is this one file, which
can be copied. Writers wait for each other.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the tables below."""
APPLICATION = 0x636B6E74
"""``cknt``: tells a history from other SQLite files."""
WAIT_S = 60.0
"""For another writer."""
COUNTED = ("replicates", "no_migration")
"""Kinds of checks that count; they have no standard error."""
_TABLES = """
CREATE TABLE run (
  id INTEGER PRIMARY KEY, time TEXT NOT NULL, seconds REAL NOT NULL, host TEXT NOT NULL,
  base TEXT NOT NULL, circuitkeep TEXT NOT NULL, torch TEXT NOT NULL, command TEXT NOT NULL);
CREATE TABLE measurement (
  run INTEGER NOT NULL REFERENCES run (id),
  checkpoint TEXT NOT NULL, path TEXT NOT NULL, fingerprint TEXT NOT NULL,
  circuit TEXT NOT NULL, "check" TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('passed', 'failed', 'inconclusive')),
  value REAL, low REAL, high REAL, error REAL, threshold REAL NOT NULL, unit TEXT NOT NULL,
  rows INTEGER NOT NULL, seeds TEXT NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY (run, checkpoint, circuit, "check"));
CREATE TABLE event (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run (id), time TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('accepted', 'error')),
  checkpoint TEXT NOT NULL, circuit TEXT NOT NULL, "check" TEXT NOT NULL, text TEXT NOT NULL);
"""
_APPEND_ONLY = """
CREATE TRIGGER no_{verb}_{table} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
"""
_NO_REPLACE = """
CREATE TRIGGER no_replace_{table} BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
"""
_KEYS = {
    "run": ("id",),
    "measurement": ("run", "checkpoint", "circuit", '"check"'),
    "event": ("id",),
}


@dataclass(frozen=True)
class Measurement:
    """One check of one circuit in one checkpoint.

    Attributes:
        checkpoint: Its name, under which the history goes on when its path changes.
        path: Where it was.
        fingerprint: Of its weights.
        circuit: The circuit's name.
        check: Such as ``score[induction]``.
        verdict: ``passed``, ``failed`` or ``inconclusive``.
        value: What was measured; NaN if it is no number.
        low, high: 95% interval of it.
        error: Standard error; NaN for what is counted.
        threshold: What was asked for.
        unit: Of all of these.
        rows: That were measured.
        seeds: Of the rows.
        detail: What else there is to say.
    """

    checkpoint: str
    path: str
    fingerprint: str
    circuit: str
    check: str
    verdict: str
    value: float
    low: float
    high: float
    error: float
    threshold: float
    unit: str
    rows: int
    seeds: str
    detail: str = ""

    @property
    def counted(self) -> bool:
        """Whether its figures are whole numbers."""
        return self.check.partition("[")[0] in COUNTED


@dataclass(frozen=True)
class Event:
    """What happened beside a measurement.

    Attributes:
        time: ISO 8601, UTC.
        kind: ``error``: something could not be measured; ``accepted``: a change is intended.
        checkpoint, circuit, check: What it is about; empty means all.
        text: The error, or the reason.
        run: With ``error``, when; with ``accepted``, the run from which on the baseline counts.
    """

    time: str
    kind: str
    checkpoint: str
    circuit: str
    check: str
    text: str
    run: int = 0


@dataclass(frozen=True)
class Run:
    """One call of the command.

    Attributes:
        time: When it began, ISO 8601, UTC.
        seconds: That it took.
        host: Name of the machine.
        base: The base model, or empty.
        circuitkeep, torch: Versions.
        command: As it was called.
        id: Given by the history.
    """

    time: str
    seconds: float
    host: str
    base: str
    circuitkeep: str
    torch: str
    command: str
    id: int = 0


@dataclass(frozen=True)
class Content:
    """All of a history, in the order in which it was written."""

    runs: tuple[Run, ...]
    measurements: tuple[tuple[int, Measurement], ...]
    """The run's id, and what it measured."""
    events: tuple[Event, ...]


class History:
    """A history file; made if there is none.

    Raises:
        ValueError: If the file is something else, or of a newer circuitkeep; if it cannot be
            written.
    """

    def __init__(self, path: str | os.PathLike[str], wait_s: float = WAIT_S) -> None:
        self.path, self.wait_s = Path(path), wait_s
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing() as database:
            _prepare(database, self.path)

    def append(
        self, run: Run, measurements: Iterable[Measurement], events: Iterable[Event] = ()
    ) -> int:
        """Add a run with all that came of it, or nothing of it; returns its id."""
        with self._writing() as database:
            number = _insert(database, "run", _names(Run), astuple(run)[:-1])
            for one in measurements:
                # SQLite keeps NaN as NULL.
                row = (number, *astuple(one))
                _insert(database, "measurement", ("run", *_names(Measurement)), row)
            for event in events:
                _insert(database, "event", (*_names(Event), "run"), (*astuple(event)[:-1], number))
        return number

    def accept(self, event: Event) -> None:
        """Add that a change is intended."""
        with self._writing() as database:
            _insert(database, "event", (*_names(Event), "run"), astuple(event))

    def read(self) -> Content:
        """All that is there."""
        with self._open() as database:
            database.execute("BEGIN")
            runs = _select(database, "run", (*_names(Run), "id"), "id")
            found = _select(database, "measurement", ("run", *_names(Measurement)), "run, rowid")
            events = _select(database, "event", (*_names(Event), "run"), "id")
        return Content(
            tuple(Run(*row) for row in runs),
            tuple((row[0], Measurement(*_with_nan(row[1:]))) for row in found),
            tuple(Event(*row) for row in events),
        )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.rollback()
                raise
            database.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                # No transactions but those that are begun here.
                sqlite3.connect(self.path, timeout=self.wait_s, isolation_level=None)
            ) as database:
                database.execute("PRAGMA foreign_keys = ON")
                yield database
        except sqlite3.DatabaseError as error:
            raise ValueError(f"the history {self.path}: {_remedy(error, self.wait_s)}") from error


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0:
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
        for statement in _statements():
            database.execute(statement)
    elif application != APPLICATION:
        raise ValueError(f"{path} is an SQLite file of something else; name another history=FILE")
    elif version != VERSION:
        raise ValueError(
            f"the history {path} has version {version}, and this circuitkeep reads {VERSION}: "
            "update circuitkeep"
        )


def _statements() -> Iterator[str]:
    yield from (text for text in _TABLES.split(";") if text.strip())
    for table, keys in _KEYS.items():
        for verb in ("UPDATE", "DELETE"):
            yield _APPEND_ONLY.format(verb=verb, table=table)
        same = " AND ".join(f"{key} = NEW.{key}" for key in keys)
        yield _NO_REPLACE.format(table=table, same=same)


def _names(kind: type) -> tuple[str, ...]:
    """The columns, but the number of the run, which comes last."""
    names = tuple(field.name for field in fields(kind))
    return names if kind is Measurement else names[:-1]


def _insert(
    database: sqlite3.Connection, table: str, names: Sequence[str], values: Sequence[object]
) -> int:
    columns = ", ".join(f'"{name}"' for name in names)
    marks = ", ".join("?" * len(names))
    done = database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
    assert done.lastrowid is not None
    return done.lastrowid


def _select(
    database: sqlite3.Connection, table: str, names: Sequence[str], order: str
) -> list[tuple]:
    columns = ", ".join(f'"{name}"' for name in names)
    return database.execute(f"SELECT {columns} FROM {table} ORDER BY {order}").fetchall()


def _with_nan(row: Iterable[Any]) -> list[Any]:
    return [math.nan if value is None else value for value in row]


def _remedy(error: sqlite3.DatabaseError, wait_s: float) -> str:
    text = str(error)
    if "locked" in text:
        return f"another process has been writing for {wait_s:g} s; try again, or see what it does"
    if "not a database" in text:
        return "this is no SQLite file; name another history=FILE"
    if "unable to open" in text or "readonly" in text:
        return f"it cannot be written ({text}); set history=FILE"
    return text
