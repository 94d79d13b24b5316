"""What is said of a series: its checks' own verdicts first, then its history."""

import math
from dataclasses import replace

import pytest

from circuitkeep.nightly import wording
from circuitkeep.nightly.history import Event
from circuitkeep.nightly.trend import trends

STEADY = [0.9 + 0.004 * math.sin(7 * number) for number in range(30)]


def test_a_steady_series_passes(nights):
    found = trends(nights(STEADY), 365)
    assert [one.last.state for one in found.now] == ["passed"]
    assert found.bad == []
    assert wording.headline(found) == "1 check: all passed"


def test_a_fall_that_still_passes_is_a_regression(nights):
    found = trends(nights([*STEADY, 0.8, 0.79]), 365)
    (bad,) = found.bad
    assert bad.last.state == "fell"
    assert bad.last.measured.verdict == "passed"
    assert wording.since(bad) == "2026-01-31 (2 runs)"
    assert wording.against(bad) == "before 0.901"
    assert wording.change(bad) == "-0.111"
    assert "sd in one night" in wording.evidence(bad)
    assert wording.headline(found) == "1 check: 1 check fell below its own history"


def test_a_slow_drift_is_a_regression(nights):
    values = [*STEADY, *(0.9 - 0.001 * night for night in range(1, 60))]
    (bad,) = trends(nights(values), 365).bad
    assert bad.last.state == "drifts"
    assert "2026-01-2" < wording.since(bad) < "2026-02-15"
    assert wording.against(bad) == "before 0.900"
    assert "sd in all" in wording.evidence(bad)


def test_a_failed_check_says_since_when(nights):
    values = [*STEADY[:10], 0.4, 0.4, 0.4]
    verdict = lambda number: "failed" if number >= 10 else "passed"  # noqa: E731
    (bad,) = trends(nights(values, verdict=verdict), 365).bad
    assert bad.last.state == "failed"
    assert wording.since(bad) == "2026-01-11 (3 runs)"
    assert wording.against(bad) == "asked for 0.5"
    assert wording.change(bad) == "-0.100"


def test_an_accepted_change_is_the_baseline(nights):
    content = nights([*STEADY, 0.8, 0.8])
    other = Event("2026-02-02", "accepted", "", "", "causal", "another check", run=31)
    assert trends(replace(content, events=(other,)), 365).bad
    own = Event("2026-02-02", "accepted", "latest", "", "", "intended", run=32)
    found = trends(replace(content, events=(other, own)), 365)
    assert found.bad == []
    assert found.series[0].restarts == (31,)
    # Nights before it are judged as they were.
    assert found.series[0].points[30].state == "fell"


def test_counts_go_by_their_own_verdict(nights):
    found = trends(nights([0.0] * 30 + [3.0], error=math.nan, check="no_migration"), 365)
    assert found.now[0].last.state == "passed"


def test_more_series_make_each_stricter(history, make_night, make_measured):
    history.append(make_night(0), [make_measured(check=f"c{at}") for at in range(50)])
    many = trends(history.read(), 365).limits
    history.append(make_night(1), [make_measured()])
    few = trends(history.read(), 365).limits
    assert many.jump > few.jump
    assert many.drift > few.drift


def test_what_the_newest_run_did_not_measure_is_not_now(history, make_night, make_measured):
    history.append(make_night(0), [make_measured(verdict="failed"), make_measured(check="causal")])
    error = Event("2026-01-02", "error", "latest", "other", "", "it broke")
    history.append(make_night(1), [make_measured(check="causal")], [error])
    found = trends(history.read(), 365)
    assert [one.check for one in found.now] == ["causal"]
    assert found.bad == []
    assert [one.text for one in found.errors] == ["it broke"]
    assert wording.headline(found) == "1 check: 1 could not be measured"
    assert wording.about(found.errors[0]) == "latest, other"


def test_the_same_weights_on_the_same_rows_are_no_new_evidence(nights):
    values = [*STEADY, *([0.885] * 60)]
    assert trends(nights(values), 365).bad


def test_fixed_rows_of_unchanged_weights(nights):
    values = [*STEADY, *([0.885] * 60)]
    same = lambda number: "a" if number >= 30 else f"{number}"  # noqa: E731
    assert trends(nights(values, fingerprint=same), 365).bad == []


def test_an_empty_history_says_so(history):
    with pytest.raises(ValueError, match="the history holds no run yet"):
        trends(history.read(), 365)
