"""Shares of several seeds, against numbers worked by hand."""

import math

import pytest
import torch

from circuitkeep.compare.paired import CircuitRows, corrected, kept, linearized, shares
from circuitkeep.compare.replicates import crossed_mean, crossed_ratio


def test_linearized_values_give_the_interval_of_the_ratio():
    generator = torch.Generator().manual_seed(0)
    base = 1 + torch.rand(50, generator=generator)
    now = base * torch.tensor([[0.5], [0.6], [0.9]]) + torch.rand(3, 50, generator=generator)
    found, wanted = crossed_mean(linearized(now, base)), crossed_ratio(now, base)
    assert found[:3] == pytest.approx(wanted[:3])


def test_each_seed_has_its_own_ratio_of_means_whatever_rows_are_missing():
    base = torch.tensor([1.0, 3.0, float("nan"), 4.0])
    now = torch.tensor([[1.0, 2.0, 9.0, 1.0], [0.0, 4.0, 9.0, 12.0]])
    values = linearized(now, base)
    assert values.mean(1).tolist() == pytest.approx([4 / 8, 16 / 8])
    assert linearized(now, -base).isnan().all()


def test_identity_is_the_mean_over_roles():
    rows = torch.tensor([1.0, 3.0])
    base = CircuitRows({"a": rows, "b": rows}, rows, rows)
    now = CircuitRows({"a": 0.5 * rows, "b": 0.9 * rows}, 0.1 * rows, rows)
    assert shares([now], base, "identity").mean().item() == pytest.approx(0.7)
    assert shares([now], base, "causal").mean().item() == pytest.approx(0.1)


def test_a_difference_is_paired_by_seed():
    own = torch.tensor([[0.5, 0.5], [0.9, 0.9]], dtype=torch.double)
    other = own - torch.tensor([[0.1], [0.3]])
    found = kept(own, (own, other))
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.2)
    # Mean of .1 and .3 over their standard deviation.
    assert found.effect_size == pytest.approx(0.2 / (0.2 / math.sqrt(2)))
    assert kept(own).difference is None


def test_each_family_is_corrected_by_itself():
    found = corrected({("a", 1): 0.01, ("a", 2): 0.03, ("b", 1): 0.04, ("b", 2): math.nan})
    assert found == pytest.approx({("a", 1): 0.02, ("a", 2): 0.03, ("b", 1): 0.04})
