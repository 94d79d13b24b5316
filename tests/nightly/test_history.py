"""Nothing that was written is lost, by two writers at once or by a kill in the middle."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from circuitkeep.nightly.history import Event, History

# Writers are processes of their own, with this file's conftest.
WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("nights", sys.argv[1])
nights = importlib.util.module_from_spec(spec); spec.loader.exec_module(nights)
from circuitkeep.nightly.history import History
"""


def writer(conftest, program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER + program, str(conftest), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def conftest(request):
    return request.path.with_name("conftest.py")


def test_what_is_written_is_read(history, make_night, make_measured):
    first = make_measured(math.nan, low=math.nan, error=math.nan, circuit="é' OR 1=1 --")
    event = Event("2026-01-01", "error", "broken", "", "", "it is gone")
    number = history.append(make_night(0), [first, make_measured(check="causal")], [event])
    found = History(history.path).read()
    assert found.runs == (replace(make_night(0), id=number),)
    (_, one), (_, two) = found.measurements
    assert one.circuit == first.circuit
    assert math.isnan(one.value)
    assert math.isnan(one.error)
    assert one.fingerprint == first.fingerprint
    assert two.value == 0.9
    assert found.events == (replace(event, run=number),)


def test_two_writers_at_once_lose_nothing(conftest, tmp_path):
    path = tmp_path / "history.sqlite"
    program = """
for number in range(40):
    # Each opens the file anew, and the first of them makes it.
    History(sys.argv[2]).append(
        nights.night(number, host=sys.argv[3]),
        [nights.measured(check=f"check-{at}") for at in range(25)],
    )
"""
    both = [writer(conftest, program, path, name) for name in ("a", "b")]
    for one in both:
        one.communicate(timeout=120)
    assert [one.returncode for one in both] == [0, 0]
    found = History(path).read()
    assert [sum(run.host == name for run in found.runs) for name in ("a", "b")] == [40, 40]
    assert len(found.measurements) == 80 * 25
    for run in found.runs:
        assert sum(number == run.id for number, _ in found.measurements) == 25


def test_a_kill_in_the_middle_leaves_whole_runs_only(conftest, tmp_path):
    path = tmp_path / "history.sqlite"
    program = """
history = History(sys.argv[2])
history.append(nights.night(0), [nights.measured()])
def endless():
    # More than SQLite keeps in memory: the file itself is half written when the kill comes.
    for at in range(10**9):
        if at == 20_000:
            print("half", flush=True)
        yield nights.measured(check=f"check-{at}", detail="x" * 200)
history.append(nights.night(1), endless())
"""
    with writer(conftest, program, path) as process:
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.with_name("history.sqlite-journal").stat().st_size > 0
    assert path.stat().st_size > 1_000_000
    history = History(path)
    found = history.read()
    assert [run.id for run in found.runs] == [1]
    assert len(found.measurements) == 1
    assert not path.with_name("history.sqlite-journal").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE measurement SET value = 1",
        "DELETE FROM measurement",
        "DELETE FROM run",
        "UPDATE event SET text = ''",
        "DELETE FROM event",
        "UPDATE run SET time = ''",
        "INSERT OR REPLACE INTO run SELECT * FROM run",
        "INSERT OR REPLACE INTO measurement SELECT * FROM measurement",
    ],
)
def test_nothing_is_changed_afterwards(history, make_night, make_measured, statement):
    event = Event("2026-01-01", "error", "a", "", "", "why")
    history.append(make_night(0), [make_measured()], [event])
    with (
        sqlite3.connect(history.path) as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute(statement)
    database.close()


def test_a_run_that_breaks_off_is_not_there(history, make_night, make_measured):
    def breaks():
        yield make_measured()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        history.append(make_night(0), breaks())
    assert history.read().runs == ()


def test_who_writes_too_long_is_told(history):
    holder = sqlite3.connect(history.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"another process has been writing for 0\.2 s; try"):
        History(history.path, wait_s=0.2)
    assert time.monotonic() - started < 10
    holder.close()


def test_another_file_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("nothing of the kind, and long enough to have a header" * 9)
    with pytest.raises(ValueError, match="this is no SQLite file; name another history=FILE"):
        History(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    with pytest.raises(ValueError, match="an SQLite file of something else"):
        History(other)
    with pytest.raises(ValueError, match="it cannot be written"):
        History(tmp_path)


def test_a_newer_file_is_refused(history):
    with sqlite3.connect(history.path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(ValueError, match="has version 7, and this circuitkeep reads 1: update"):
        History(history.path)
