"""The page and the table of a history."""

import io
import math
import re
import time

import pytest
from rich.console import Console

from circuitkeep.nightly.history import Event
from circuitkeep.nightly.page import render_page, thinned
from circuitkeep.nightly.terminal import not_passed, render_errors, render_table
from circuitkeep.nightly.trend import trends


@pytest.fixture
def wrong(history, make_night, make_measured):
    """A fall, a failed count, an error, and a reason with markup."""
    for number in range(12):
        rows = [make_measured(0.9 if number < 11 else 0.7)]
        rows.append(
            make_measured(
                3.0,
                check="no_migration",
                verdict="failed",
                low=2.0,
                high=4.0,
                error=math.nan,
                threshold=0.0,
                detail="induction: L1H2 lost",
            )
        )
        history.append(make_night(number), rows)
    event = Event("2026-01-13", "error", "broken", "", "", "<b>gone</b>")
    history.append(make_night(12), rows, [event])
    history.accept(Event("2026-01-14", "accepted", "none", "", "", "why not", run=1))
    return trends(history.read(), 365)


def test_the_page_says_what_is_wrong(wrong):
    text = render_page(wrong, "h.sqlite")
    assert "2 checks: 1 check failed, 1 check fell below its own history, 1 could not be" in text
    told = re.sub(r"<[^>]+>|\s+", " ", text[text.index('id="wrong"') :])
    for part in ("−0.200", "before 0.900", "3 [2, 4]", "+3", "asked for 0", "L1H2 lost"):
        assert part in told, part
    assert "&lt;b&gt;gone&lt;/b&gt;" in text
    assert "<b>gone</b>" not in text
    assert "why not" in text
    assert "https://" not in text[: text.index('id="data"')]


def test_the_terminal_says_the_same(wrong):
    text = io.StringIO()
    console = Console(file=text, width=200)
    console.print(render_table(not_passed(wrong)))
    console.print(render_errors(wrong))
    printed = text.getvalue()
    assert re.search(r"failed +latest +induction +no_migration +3 \[2, 4\] +\+3 +asked", printed)
    assert re.search(r"fell .*0.700 \[0.680, 0.720\] +-0.200 +before 0.900 +2026-01-12", printed)
    assert "not measured: broken: <b>gone</b>" in printed


def test_ten_thousand_measurements_are_a_page_in_seconds(large):
    started = time.process_time()
    found = trends(large.read(), 365)
    text = render_page(found, "h.sqlite")
    # Types are checked while tests run, which makes it slower; docs/nightly.md has the figures.
    assert time.process_time() - started < 30
    assert sum(len(one.points) for one in found.series) == 10_000
    assert len(text) < 10_000_000
    assert {(one.checkpoint, one.last.state) for one in found.bad} >= {
        ("model-3", "drifts"),
        ("model-7", "fell"),
    }


def test_thinning_keeps_ends_extremes_and_what_is_kept():
    values = [0.5] * 10_000
    values[1234], values[5678], values[7000] = 9.0, -9.0, math.nan
    kept = thinned(values, {4321, 8765}, 300)
    assert {0, 1234, 4321, 5678, 8765, 9999} <= set(kept)
    assert kept == sorted(set(kept))
    assert len(kept) <= 304
    assert thinned([1.0, math.nan], set()) == [0, 1]
    assert len(thinned(values, set(range(10_000)), 300)) <= 602
