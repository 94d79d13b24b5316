import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
TITLES = {"no-guard": "no guard", "guard": "guard", "other": "another"}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in ("study_rivals", "study_rivals_report"):
        sys.modules.pop(name, None)


def made(method: str, value: float, seed: int, cost: float, kept: float, off_task: float) -> dict:
    """A run on a task of which 4 nats are learned, at a cost of 10 nats elsewhere."""
    return {
        "task": "key-value",
        "method": method,
        "value": value,
        "seed": seed,
        "task_nats": 0.5 + 4 * cost,
        "base_task_nats": 4.5,
        "off_task_nats": 2 + 10 * off_task,
        "base_off_task_nats": 2.0,
        "identity": 0.5,
        "causal": kept / 2,
        "behaviour": kept,
    }


@pytest.fixture
def runs():
    found = []
    for seed in (0, 1):
        found.append(made("no-guard", 0, seed, 0, 0.2, 1))
        found.append(made("guard", 1, seed, 0.05, 0.8, 0.5))
        found.append(made("guard", 10, seed, 0.15, 1.0, 0.25))
        found.append(made("other", 1, seed, 0.05, 0.95, 0.4))
        # Keeps all, and does not learn the task.
        found.append(made("other", 10, seed, 0.5, 1.0, 0.0))
    return found


def test_costs_are_paired_with_the_unguarded_run(script, runs):
    report = script("study_rivals_report")
    runs[5]["task_nats"] += 0.4  # the unguarded run of seed 1
    report.add_costs(runs)
    assert runs[2]["task_cost"] == pytest.approx(0.15)
    assert runs[2]["off_task_cost"] == pytest.approx(0.25)
    assert runs[7]["task_cost"] == pytest.approx((0.6 - 0.4) / 3.6)


def test_areas_by_hand(script, runs):
    report = script("study_rivals_report")
    report.add_costs(runs)
    # .2 up to a cost of .05, .8 up to .15, and 1 up to .25; the other has .95 from .05 on.
    guard = (0.05 * 0.2 + 0.1 * 0.8 + 0.1) / 0.25
    other = (0.05 * 0.2 + 0.2 * 0.95) / 0.25
    lines = report.areas(runs, TITLES, "task_cost").splitlines()
    assert lines[3].endswith(f"{guard:.3f} [{guard:.3f}, {guard:.3f}] |  |")
    less = f"{other - guard:+.3f} {other - guard:+.3f}"
    assert lines[4].endswith(f"{other:.3f} [{other:.3f}, {other:.3f}] | **{less}** |")
    # Elsewhere: the point that does not learn the task counts for nothing.
    lines = report.areas(runs, TITLES, "off_task_cost").splitlines()
    assert lines[3].endswith("0.750 [0.750, 0.750] |  |")
    assert lines[4].endswith("0.570 [0.570, 0.570] | -0.180 -0.180 |")


def test_a_rival_that_wins_on_every_seed_is_bold(script, runs):
    report = script("study_rivals_report")
    for one in runs:
        if one["method"] == "other":
            one["task_nats"] = 0.5
    report.add_costs(runs)
    row = report.areas(runs, TITLES, "task_cost").splitlines()[4]
    assert row.count("**") == 4  # in both retentions
    runs[3]["task_nats"] = runs[4]["task_nats"] = 4.5  # now not on seed 0
    report.add_costs(runs)
    assert "**" not in report.areas(runs, TITLES, "task_cost")


def test_the_best_point_weighs_both(script, runs):
    report = script("study_rivals_report")
    report.add_costs(runs)
    lines = report.best_points(runs, TITLES).splitlines()
    # .8 * (1 - .05 / .25) = .64 beats 1 * (1 - .15 / .25) = .4.
    assert lines[3].startswith("| guard | 1 |")
    assert lines[4].startswith("| another | 1 |")


def test_plots_are_drawn(script, runs, tmp_path):
    report = script("study_rivals_report")
    report.report(runs, TITLES, tmp_path)
    for kind in ("causal", "behaviour"):
        text = (tmp_path / f"pareto-{kind}.svg").read_text()
        assert "<svg" in text
        assert "nan" not in text


def test_a_wrong_name_is_named(script):
    study = script("study_rivals")
    assert study.chosen("method", "ewc,guard", study.METHODS) == ["ewc", "guard"]
    with pytest.raises(SystemExit, match=r"no method 'rehersal'.*rehearsal"):
        study.chosen("method", "rehersal", study.METHODS)


def test_every_method_has_as_many_points(script):
    methods = script("study_rivals").METHODS
    assert {len(method.grid) for name, method in methods.items() if name != "no-guard"} == {3}
