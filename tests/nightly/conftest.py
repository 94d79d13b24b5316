"""Histories of given values, one per night."""

import math
import random
from datetime import datetime, timedelta, timezone

import pytest

from circuitkeep.nightly.history import Content, History, Measurement, Run


def night(number, **changes):
    """The run of a night."""
    time = datetime(2026, 1, 1, 3, tzinfo=timezone.utc) + timedelta(days=number)
    content = {"seconds": 60.0, "host": "h", "base": "", "circuitkeep": "1", "torch": "2"}
    return Run(time.isoformat(timespec="seconds"), **{**content, "command": "nightly", **changes})


def measured(value=0.9, **changes):
    """A measurement that passes."""
    content = {
        "checkpoint": "latest",
        "path": "runs/latest",
        "fingerprint": f"{random.random()}",
        "circuit": "induction",
        "check": "score[induction]",
        "verdict": "passed",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "error": 0.01,
        "threshold": 0.5,
        "unit": "mean attention",
        "rows": 384,
        "seeds": "1 2 3",
    }
    return Measurement(**{**content, **changes})


@pytest.fixture
def make_night():
    return night


@pytest.fixture
def make_measured():
    return measured


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.sqlite")


@pytest.fixture
def nights():
    """Makes a history of one value per night; the changes may depend on the night's number."""

    def make(values, **changes):
        rows = []
        for number, value in enumerate(values):
            own = {k: v(number) if callable(v) else v for k, v in changes.items()}
            rows.append((number + 1, measured(value, **own)))
        runs = tuple(night(number, id=number + 1) for number in range(len(values)))
        return Content(runs, tuple(rows), ())

    return make


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """10,000 measurements: 100 nights of 2 circuits x 5 checks x 10 checkpoints, some falling."""
    drawn = random.Random(0)
    made = History(tmp_path_factory.mktemp("large") / "history.sqlite")
    checks = ["score[previous-token]", "score[induction]", "causal", "behaviour", "no_migration"]
    for number in range(100):
        rows = []
        for at in range(100):
            check = checks[at // 10 % 5]
            counted = check == "no_migration"
            value = 0.0 if counted else drawn.gauss(0.9, 0.01)
            if at == 3:
                value -= max(0, number - 60) * 0.002
            if at == 57 and number > 97:
                value -= 0.2
            rows.append(
                measured(
                    value,
                    checkpoint=f"model-{at % 10}",
                    circuit=f"circuit-{at // 50}",
                    check=check,
                    error=math.nan if counted else 0.01,
                    threshold=0.0 if counted else 0.5,
                    unit="heads that moved" if counted else "mean attention",
                )
            )
        made.append(night(number), rows)
    return made
