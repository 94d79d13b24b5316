import math

import pytest
import torch
from scipy import stats

from circuitkeep.compare.replicates import crossed_mean, crossed_ratio


def simulated(generator, seeds, spreads, skewed, prompts=20):
    def draw(*shape):
        if skewed:
            return torch.empty(shape, dtype=torch.double).exponential_(generator=generator) - 1
        return torch.randn(shape, generator=generator, dtype=torch.double)

    seed, prompt, rest = spreads
    # What a seed does to the whole model is a sum of many small things: always normal.
    own = torch.randn(seeds, 1, generator=generator, dtype=torch.double)
    return seed * own + prompt * draw(1, prompts) + rest * draw(seeds, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True], ids=["normal", "skewed"])
@pytest.mark.parametrize("spreads", [(1, 1, 1), (0.5, 1, 0.3), (0.2, 1, 1)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover(seeds, spreads, skewed):
    generator = torch.Generator().manual_seed(seeds)
    covered = 0
    for _ in range(1000):
        found = crossed_mean(simulated(generator, seeds, spreads, skewed))
        covered += found.low <= 0 <= found.high
    print(f"\n{seeds} seeds, spreads {spreads}, {skewed=}: {covered / 1000:.3f}")
    assert 0.93 <= covered / 1000 <= 0.97


def test_a_bootstrap_of_both_is_too_narrow():
    """Why there is none here."""
    generator = torch.Generator().manual_seed(0)
    bounds, covered = torch.tensor([0.025, 0.975], dtype=torch.double), 0
    for _ in range(300):
        values = simulated(generator, 3, (1, 0.2, 0.2), False)
        seed = torch.randint(3, (400, 3, 1), generator=generator)
        prompt = torch.randint(20, (400, 1, 20), generator=generator)
        low, high = values[seed, prompt].mean((1, 2)).quantile(bounds)
        covered += bool(low <= 0 <= high)
    assert covered / 300 < 0.85


def test_ratios_cover():
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(1000):
        base = 2 + torch.randn(20, generator=generator, dtype=torch.double).abs()
        now = 0.8 * base + simulated(generator, 3, (0.3, 0.3, 0.3), False)
        found = crossed_ratio(now, base)
        covered += found.low <= 0.8 <= found.high
    assert 0.93 - 0.014 <= covered / 1000 <= 0.97 + 0.014


def test_one_seed_is_a_t_interval_over_prompts():
    values = torch.tensor([[1.0, 2.0, 4.0, 5.0]])
    found = crossed_mean(values)
    low, high = stats.t.interval(0.95, 3, loc=3.0, scale=stats.sem(values[0].numpy()))
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert found.p == pytest.approx(stats.ttest_1samp(values[0].numpy(), 0).pvalue)
    assert (found.seeds, found.prompts) == (1, 4)


def test_worked_by_hand():
    # Seeds 0 and 4 apart from their mean 2, prompts equal: M_S = 2 * (4 + 4) = 16, M_P = M_E = 0.
    found = crossed_mean(torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(16 / 4))


def test_prompts_without_a_value_are_left_out():
    values = torch.tensor([[1.0, 2.0, math.nan], [3.0, 5.0, 7.0]])
    assert crossed_mean(values) == crossed_mean(values[:, :2])
    with pytest.raises(ValueError, match="no prompt has a value"):
        crossed_mean(torch.full((2, 3), math.nan))


def test_values_that_are_all_alike():
    found = crossed_mean(torch.full((3, 4), 0.5))
    assert found[:4] == (0.5, 0.5, 0.5, 0.0)
    assert crossed_mean(torch.zeros(3, 4)).p == 1
    assert math.isnan(crossed_mean(torch.ones(1, 1)).low)


def test_the_ratio_of_a_model_to_itself():
    base = torch.rand(20, generator=torch.Generator().manual_seed(2)) + 0.5
    found = crossed_ratio(base.expand(3, -1), base)
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1)
    assert found.p == pytest.approx(1)
    assert math.isnan(crossed_ratio(base[None], torch.zeros(20)).mean)


def test_more_seeds_narrow_it():
    generator = torch.Generator().manual_seed(3)
    values = simulated(generator, 20, (1, 1, 1), False)
    few, many = crossed_mean(values[:3]), crossed_mean(values)
    assert many.high - many.low < few.high - few.low
