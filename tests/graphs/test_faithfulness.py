"""The figures of agreement, against scipy and numbers worked by hand."""

import math

import pytest
import torch
from scipy import stats

from circuitkeep.capture import attach
from circuitkeep.graphs.changes import clean_run
from circuitkeep.graphs.choice import STRONG, chosen_interventions
from circuitkeep.graphs.faithfulness import (
    ANSWERED,
    GAPS,
    PREDICTED,
    WORLDS,
    agreement,
    lost,
    measure,
    shuffled,
)
from circuitkeep.graphs.trace import trace

from .oracles import exact_transcoder, linear, prompt


def prompts(count=40, noise=0.5, slope=0.7, seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(rows, 3, generator=generator) for _ in range(count)]
    y = [slope * one + noise * torch.randn(rows, 3, generator=generator) for one in x]
    return x, y


def test_figures_are_those_of_scipy():
    x, y = prompts()
    found = agreement(x, y)
    flat_x, flat_y = (torch.cat(v).flatten().double().numpy() for v in (x, y))
    line = stats.linregress(flat_x, flat_y)
    assert (found.prompts, found.points) == (40, 40 * 18)
    assert found.correlation.value == pytest.approx(line.rvalue)
    assert found.slope_with_intercept.value == pytest.approx(line.slope)
    assert found.intercept.value == pytest.approx(line.intercept)
    assert found.slope.value == pytest.approx((flat_x @ flat_y) / (flat_x @ flat_x))
    same = (flat_x * flat_y > 0).mean()
    assert found.signs.value == pytest.approx(same)
    rest = ((flat_y - flat_x) ** 2).sum() / (flat_y**2).sum()
    assert found.difference.value == pytest.approx(math.sqrt(rest))


def test_by_hand():
    x, y = [torch.tensor([[1.0, -1.0]])], [torch.tensor([[3.0, 1.0]])]
    found = agreement(x, y)
    assert found.slope.value == 1.0
    assert (found.slope_with_intercept.value, found.intercept.value) == (1.0, 2.0)
    assert (found.signs.value, found.weighted_signs.value) == (0.5, 0.75)
    assert found.difference.value == pytest.approx(math.sqrt(8 / 10))


def test_the_same_agrees_and_points_without_an_effect_have_no_sign():
    x, _ = prompts()
    x[0][0] = 0
    found = agreement(x, x)
    for name in ("correlation", "signs", "weighted_signs", "slope", "slope_with_intercept"):
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1, 1, 1))
    assert found.difference.value == pytest.approx(0, abs=1e-6)
    assert agreement([torch.zeros(2, 2)], [torch.ones(2, 2)]).signs.value != 1.0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(60):
        found = agreement(*prompts(count=30, seed=seed)).slope
        inside += found.low <= 0.7 <= found.high
    assert 50 <= inside <= 60


def test_intervals_draw_prompts_not_points():
    """Prompts that are copies of one another tell no more than one of them."""
    x, y = prompts(count=12)
    many = agreement(x, y).slope
    few = agreement([x[0]] * 6 + [x[1]] * 6, [y[0]] * 6 + [y[1]] * 6).slope
    one = agreement([x[0]] * 12, [y[0]] * 12).slope
    assert one.high - one.low < 1e-9 < many.high - many.low
    assert few.high - few.low > 1e-3


def test_what_is_lost_is_paired():
    x, y = prompts(noise=0.3)
    _, z = prompts(noise=0.9)
    found = lost(x, y, z)
    assert found.value == pytest.approx(
        agreement(x, y).correlation.value - agreement(x, z).correlation.value
    )
    assert 0 < found.low < found.value < found.high
    same = lost(x, y, y)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_shuffling_keeps_prompts_and_loses_the_prediction():
    x, y = prompts(noise=0.1)
    other = shuffled(x)
    for one, another in zip(x, other, strict=True):
        assert {tuple(r) for r in one.tolist()} == {tuple(r) for r in another.tolist()}
    assert abs(agreement(other, y).correlation.value) < 0.3 < agreement(x, y).correlation.value


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="prompts"):
        agreement([], [])
    with pytest.raises(ValueError, match="same prompts"):
        agreement([torch.ones(2, 2)], [torch.ones(2, 3)])


def test_every_world_is_measured_and_the_exact_graph_is_right():
    model = linear("gpt2", seed=0, layers=3)
    backend, transcoder, tokens = attach(model), exact_transcoder(model), prompt(1)
    graph = trace(backend, tokens.tolist(), transcoder)
    run = clean_run(backend, transcoder, tokens)
    rows = chosen_interventions(run, graph)[STRONG]
    found = measure(run, graph, rows)
    assert set(found) == {PREDICTED, ANSWERED, *WORLDS}
    assert {name for pair in GAPS.values() for name in pair} <= set(found)
    gap = {
        name: agreement([found[x]], [found[y]]).difference.value for name, (x, y) in GAPS.items()
    }
    assert gap["features that switch"] < 1e-9
    assert gap["replacement"] < 1e-9
    assert gap["frozen attention"] > 1e-3
    assert gap["all of it"] == pytest.approx(gap["frozen attention"])
