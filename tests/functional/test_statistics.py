import math

import pytest
import torch

from circuitkeep.functional import mean_ratio_interval


def test_against_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(2, 60, generator=generator) + 0.5
    now = base * (0.5 + 0.4 * torch.rand(2, 60, generator=generator))
    ratios = torch.empty(4000)
    for draw in range(4000):
        rows = torch.randint(60, (60,), generator=generator)
        ratios[draw] = sum(now[g, rows].mean() / base[g, rows].mean() for g in range(2)) / 2
    naive = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    assert mean_ratio_interval(now, base) == pytest.approx(naive, abs=0.004)


def test_rows_are_drawn_in_pairs():
    base = torch.rand(1, 30) + 0.1
    assert mean_ratio_interval(0.5 * base, base) == pytest.approx((0.5, 0.5))


def test_by_hand():
    # Two rows: a draw holds the first twice (ratio 0), both (1/2) or the second twice (1).
    low, high = mean_ratio_interval(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2))
    assert (low, high) == (0.0, 1.0)
    low, high = mean_ratio_interval(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), level=0.4)
    assert (low, high) == (0.5, 0.5)


def test_nan_rows_are_left_out():
    base = torch.tensor([[1.0, 2.0, math.nan]])
    assert mean_ratio_interval(2 * base, base) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("base", [[[0.0, 0.0]], [[-1.0, 0.5]], [[math.nan, math.nan]], [[1.0]]])
def test_a_base_that_says_nothing(base):
    base = torch.tensor(base)
    assert all(math.isnan(end) for end in mean_ratio_interval(base, base))


def test_the_same_twice_and_no_global_random_state():
    base, state = torch.rand(1, 9) + 0.1, torch.get_rng_state()
    now = torch.rand(1, 9, generator=torch.Generator().manual_seed(1))
    assert mean_ratio_interval(now, base) == mean_ratio_interval(now, base)
    assert torch.equal(state, torch.get_rng_state())
