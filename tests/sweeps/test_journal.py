"""What is told of a sweep follows from its events."""

from circuitkeep.sweeps import journal
from circuitkeep.sweeps.journal import Outcome


def test_events_become_outcomes(tmp_path):
    def note(run, event, **more):
        journal.note(tmp_path, "now", run, event, **more)

    journal.note(tmp_path, "before", "e", "failed", error="old")
    note("c", "skipped")
    note("a", "started")
    note("b", "resumed")
    note("a", "finished", seconds=2.0)
    note("b", "finished", seconds=1.0)
    note("d", "failed", error="no", mistake=True, seconds=0.5)
    with (tmp_path / journal.NAME).open("a") as file:
        file.write('{"cut sho')
    note("e", "started")
    ended = journal.outcomes(journal.read(tmp_path, "now"))
    assert ended == [
        Outcome("a", "finished", 2.0),
        Outcome("b", "resumed", 1.0),
        Outcome("c", "skipped"),
        Outcome("d", "failed", 0.5, "no", True),
        Outcome("e", "broken off"),
    ]
    assert len(journal.read(tmp_path)) == 8
    assert journal.render_table(ended).row_count == 5


def test_exit_codes():
    fine, mistake = Outcome("a", "skipped"), Outcome("b", "failed", mistake=True)
    fault, cut = Outcome("c", "failed"), Outcome("d", "broken off")
    assert journal.exit_code([fine, Outcome("e", "busy")]) == 0
    assert journal.exit_code([fine, fault]) == 1
    assert journal.exit_code([fine, cut]) == 1
    assert journal.exit_code([fault, mistake]) == 2


def test_no_journal_is_an_empty_one(tmp_path):
    assert journal.read(tmp_path) == []
