import math

import pytest
import torch

from circuitkeep.functional import hypervolume


def area(cost: list[float], gain: list[float], most: float = 1.0) -> float:
    return hypervolume(torch.tensor(cost).double(), torch.tensor(gain).double(), most).item()


@pytest.mark.parametrize("seed", range(5))
def test_against_a_naive_count(seed):
    generator = torch.Generator().manual_seed(seed)
    cost = 2.4 * torch.rand(7, generator=generator).double() - 0.2
    gain = 1.6 * torch.rand(7, generator=generator).double() - 0.3
    cells = 400
    dominated = 0
    for i in range(cells):
        at = 2 * (i + 0.5) / cells
        for j in range(cells):
            kept = (j + 0.5) / cells
            dominated += any(
                c <= at and g >= kept for c, g in zip(cost.tolist(), gain.tolist(), strict=True)
            )
    assert hypervolume(cost, gain, 2.0).item() == pytest.approx(dominated / cells**2, abs=0.01)


def test_by_hand():
    # .5 from .2 on, .9 from .6 on: .4 * .5 + .4 * .9.
    assert area([0.6, 0.2], [0.9, 0.5]) == pytest.approx(0.56)
    assert area([1.2, 0.4], [0.9, 0.5], most=2.0) == pytest.approx(0.56)


def test_the_best_point_there_is():
    assert area([0.0], [1.0]) == 1
    assert area([-0.5], [3.0]) == 1


def test_a_dominated_point_changes_nothing():
    assert area([0.2, 0.3], [0.5, 0.4]) == area([0.2], [0.5])


@pytest.mark.parametrize(("cost", "gain"), [(1.0, 1.0), (7.0, 1.0), (0.0, 0.0), (0.0, -2.0)])
def test_points_worth_nothing(cost, gain):
    assert area([cost], [gain]) == 0


def test_no_points():
    assert area([], []) == 0


def test_two_points_of_one_cost():
    assert area([0.2, 0.2], [0.3, 0.8]) == area([0.2, 0.2], [0.8, 0.3]) == pytest.approx(0.64)


def test_mistakes():
    with pytest.raises(ValueError, match="most must be positive"):
        area([0.1], [0.5], most=0.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            area([bad], [0.5])
        with pytest.raises(ValueError, match="finite"):
            area([0.1], [bad])
