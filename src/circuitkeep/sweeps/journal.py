"""``sweep.jsonl``: what happened to every run, one line per event, whoever ran it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich import box
from rich.table import Table
from rich.text import Text

NAME = "sweep.jsonl"
STARTS = ("started", "resumed")
ENDS = ("finished", "failed", "skipped", "busy")


@dataclass(frozen=True)
class Outcome:
    """What a sweep did about one run.

    Attributes:
        run: Its folder's name.
        outcome: ``finished``, ``resumed`` (and finished), ``skipped``, ``busy`` (another sweep is
            at it), ``failed`` or ``broken off``.
        seconds: Of this attempt.
        error: Why it failed.
        mistake: Whether the user can mend that.
    """

    run: str
    outcome: str
    seconds: float = 0.0
    error: str = ""
    mistake: bool = False


def note(folder: Path, sweep: str, run: str, event: str, **more: Any) -> None:
    """Add an event; several processes may do so at once.

    Args:
        folder: Of the sweep.
        sweep: Which call of the command this is.
        run: The folder's name.
        event: One of `STARTS` or `ENDS`.
        more: ``seconds``, ``error``, ``mistake``.
    """
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sweep": sweep,
        "run": run,
        "event": event,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **more,
    }
    with FileLock(folder / f".{NAME}.lock"), (folder / NAME).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a crash cut the line before this one short
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")


def read(folder: Path, sweep: str | None = None) -> list[dict[str, Any]]:
    """All events, or those of one call; a line that a crash cut short is left out."""
    found = []
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if sweep in (None, entry["sweep"]):
            found.append(entry)
    return found


def outcomes(events: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """How each run of one call ended, in the order of their names."""
    found: dict[str, Outcome] = {}
    resumed = set()
    for event in events:
        run, what = event["run"], event["event"]
        if what in STARTS:
            resumed |= {run} if what == "resumed" else set()
            found[run] = Outcome(run, "broken off")
        else:
            what = "resumed" if what == "finished" and run in resumed else what
            more = {key: event[key] for key in ("seconds", "error", "mistake") if key in event}
            found[run] = Outcome(run, what, **more)
    return [found[run] for run in sorted(found)]


def exit_code(ended: Iterable[Outcome]) -> int:
    """2 if a run failed by a mistake of the user, 1 if one failed otherwise, else 0."""
    failed = [each for each in ended if each.outcome in ("failed", "broken off")]
    return 2 if any(each.mistake for each in failed) else int(bool(failed))


def render_table(ended: Iterable[Outcome]) -> Table:
    """One line per run."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for each in ended:
        style = "bold red" if each.outcome in ("failed", "broken off") else ""
        seconds = f"{each.seconds:.0f}" if each.seconds else ""
        table.add_row(Text(each.run), Text(each.outcome, style), seconds, Text(each.error))
    return table
