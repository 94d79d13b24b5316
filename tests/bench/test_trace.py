"""Tracing, raced: the rival finds the same edges."""

import pytest
import torch

from circuitkeep.bench.race import run_races
from circuitkeep.bench.trace import TraceSuite

TINY = {"layers": 2, "heads": 2, "d_model": 16, "vocab": 40, "features": 24, "active": 3}


def test_both_find_the_same_edges():
    suite = TraceSuite(length=12, batch=5, **{**TINY, "d_model": 64})
    (race,) = suite.races(torch.device("cpu"))
    assert race.work["ours_mflop"] > 0
    assert race.work["autograd_mflop"] > 0
    (result,) = run_races([race], 1, torch.device("cpu"))
    assert race.work["features"] == 2 * 12 * 3
    assert result.largest > 1e-3
    assert result.differences["autograd"] < 1e-5 * max(1.0, result.largest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "bench.batch must be at least 1"),
        ({"length": 5000}, "bench.length must be at most"),
        ({"active": 25}, "bench.active=25"),
        ({"repeats": 1}, "bench.repeats=1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        TraceSuite(**{**TINY, **options})
