"""Falls at once and slowly, against histories whose change is known."""

import math
import random

import pytest
from scipy import stats

from circuitkeep.functional.change import (
    FEWEST,
    Limits,
    drift_limit,
    follow,
    normal_of_t,
    surprise,
)

LIMITS = Limits.of(3650)


def drawn(count, seed=0, mean=100.0):
    generator = random.Random(seed)
    return [generator.gauss(mean, 1.0) for _ in range(count)]


def followed(values, error=0.5, **more):
    return follow(values, [error] * len(values), LIMITS, **more)


def first_alarm(steps, start=0):
    return next((i for i, s in enumerate(steps) if i >= start and (s.fell or s.drifts)), None)


@pytest.mark.parametrize(("degrees", "most"), [(4, 0.2), (10, 0.04), (50, 0.002)])
def test_t_becomes_normal(degrees, most):
    for size in (-6, -4, -2, -0.5, 0, 1, 3, 6):
        t = float(stats.t.isf(stats.norm.sf(size), degrees))
        assert normal_of_t(t, degrees) == pytest.approx(size, abs=most)


def test_surprise_by_hand():
    # (7 - 10) / (2 * sqrt(1 + 1/4)) = -1.3416; sqrt(3 log(1 + 1.8/3)) = 1.1875, times 25/27.
    assert surprise(7.0, 0.0, 10.0, 2.0, 4) == pytest.approx(-1.0995, abs=1e-4)
    assert surprise(13.0, 0.0, 10.0, 2.0, 4) == pytest.approx(1.0995, abs=1e-4)
    assert surprise(7.0, 3.0, 10.0, 2.0, 4) == surprise(7.0, 0.0, 10.0, 3.0, 4)
    assert surprise(10.0, 0.0, 10.0, 0.0, 4) == 0
    assert surprise(-1.0, 0.0, 0.0, 0.0, 4) < -30


def test_the_limit_of_a_drift_is_siegmunds():
    # Exact average run lengths of the one-sided sum with allowance 0.5: 4 -> 336, 5 -> 930
    # (Hawkins & Olwell 1998, table 3.2); Siegmund's approximation is within 1% there.
    assert drift_limit(336) == pytest.approx(4, abs=0.02)
    assert drift_limit(930) == pytest.approx(5, abs=0.02)


def test_false_alarms_are_as_rare_as_is_said():
    """Run lengths of unchanged series, of which prompts are all the noise."""
    between, runs, length = 100, 60, 300
    limits = Limits.of(between)
    total = alarms = 0
    for seed in range(runs):
        values = drawn(length, seed, 0.0)
        steps = follow(values, [1.0] * length, limits)
        found = first_alarm(steps)
        total += length if found is None else found + 1
        alarms += found is not None
    assert total / alarms > between


@pytest.mark.parametrize(("before", "most"), [(10, 35), (30, 28), (100, 26)])
def test_a_drift_of_a_tenth_of_a_deviation_per_night_is_seen(before, most):
    late = []
    for seed in range(20):
        values = drawn(before + 60, seed)
        values = [value - 0.1 * max(0, place - before + 1) for place, value in enumerate(values)]
        steps = followed(values)
        found = first_alarm(steps, before)
        assert found is not None
        late.append(found - before + 1)
        assert steps[found].since <= found
    assert sorted(late)[len(late) * 9 // 10] <= most


def test_where_a_drift_began():
    values = [100.0 + 0.1 * (-1) ** place for place in range(30)]
    values += [100.0 - 0.05 * night for night in range(1, 30)]
    steps = followed(values, 0.1)
    found = first_alarm(steps)
    assert steps[found].drifts
    assert not steps[found].fell
    assert 28 <= steps[found].since <= 36
    assert steps[found].baseline == pytest.approx(100, abs=0.05)


def test_a_fall_is_seen_at_once_and_until_it_is_over():
    values = [*drawn(30), 90.0, 90.5, 89.0, 100.0, 100.0]
    steps = followed(values)
    assert first_alarm(steps) == 30
    assert [step.fell for step in steps[30:]] == [True, True, True, False, False]
    assert [step.since for step in steps[30:33]] == [30, 30, 30]
    assert steps[32].baseline == pytest.approx(100, abs=0.6)
    assert steps[34].since is None


def test_a_fall_that_lasts_is_no_baseline():
    assert all(step.fell for step in followed([*drawn(30), *([90.0] * 60)])[30:])


def test_few_values_say_nothing():
    values = [100.0, 100.1, 99.9, 100.0, 0.0]
    assert len(values) == FEWEST
    assert first_alarm(followed(values)) is None
    assert math.isnan(followed(values)[-1].baseline)


def test_values_that_never_differ_divide_by_nothing():
    same = follow([1.0] * 40, [0.0] * 40, LIMITS)
    assert first_alarm(same) is None
    assert same[-1].baseline == 1
    # Another machine computes a little differently.
    assert first_alarm(follow([1.0] * 40 + [0.999] * 5, [0.0] * 45, LIMITS)) is None
    assert first_alarm(follow([1.0] * 40 + [0.9], [0.0] * 41, LIMITS)) == 40
    assert first_alarm(follow([0.0] * 40 + [-0.1], [0.0] * 41, LIMITS)) == 40


def test_a_restart_accepts_what_is_there():
    values = [*drawn(30), *(value - 10 for value in drawn(30, 1))]
    assert followed(values)[-1].fell
    steps = followed(values, restarts={31})
    assert [step.fell for step in steps[30:32]] == [True, False]
    assert first_alarm(steps, 31) is None
    assert steps[-1].start == 31
    assert steps[-1].baseline == pytest.approx(90, abs=0.6)


def test_a_rise_is_the_new_baseline():
    values = [*drawn(30), *(value + 5 for value in drawn(20, 1)), 100.0]
    steps = followed(values)
    assert first_alarm(steps) == 50
    assert 26 <= steps[-1].start <= 33
    assert steps[-1].baseline == pytest.approx(105, abs=0.8)


def test_unsound_values_are_no_baseline():
    values = [101.0, 100.0] * 10
    assert followed(values, unsound=set(range(0, 20, 2)))[-1].baseline == 100
    assert followed(values)[-1].baseline == 101


def test_a_repeat_is_no_new_evidence_of_a_drift():
    values = [*drawn(30), *([98.2] * 40)]
    assert first_alarm(followed(values)) is not None
    assert first_alarm(followed(values, repeats=set(range(31, 70)))) is None


def test_what_is_no_number_is_left_out():
    values = [*drawn(30), math.nan, 90.0]
    steps = followed(values)
    assert not steps[30].fell
    assert steps[31].since == 31


def test_alarms_cannot_be_had_all_the_time():
    with pytest.raises(ValueError, match="10 values apart at least, got 2"):
        Limits.of(2)
