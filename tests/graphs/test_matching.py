"""Features of two transcoders are found again."""

import pytest
import torch
from scipy import stats

from circuitkeep.graphs.matching import correlations, match_features


def activations(seed=0, layers=2, tokens=300, features=12):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(layers, tokens, features, generator=generator)
    return values * (torch.rand(values.shape, generator=generator) < 0.2)


def test_a_permutation_is_found_again_layer_by_layer():
    first = activations()
    orders = [torch.randperm(12, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    second = torch.stack([3 * x[:, order] for x, order in zip(first, orders, strict=True)])
    found = match_features(first, second)
    for layer, order in enumerate(orders):
        assert torch.equal(order[found.partner[layer]], torch.arange(12))
    assert torch.allclose(found.correlation, torch.ones(2, 12).double())
    assert found.shares(0.99) == 1
    labels = found.labels()
    assert len(labels) == 24
    assert labels[1, int(found.partner[1, 4])] == 4


def test_the_sum_counts_not_each_one_by_itself():
    """Both like the same best; the assignment gives one up for the other."""
    base = torch.tensor([1.0, 0, 2, 0, 1, 0, 0, 3])
    noise = torch.tensor([0.0, 1, 0, 0, 0, 1, 0, 0])
    second = torch.stack([base, base + noise], 1)
    first = torch.stack([base, base], 1)
    found = match_features(first[None], second[None])
    assert sorted(found.partner[0].tolist()) == [0, 1]
    assert found.correlation[0].max() == pytest.approx(1)
    assert found.shares(0.999) == 0.5


def test_unrelated_features_do_not_correlate():
    found = match_features(activations(0), activations(1))
    assert found.shares(0.5) == 0
    assert found.labels(0.5) == {}
    assert found.correlation.nanmean() < 0.3


def test_silent_features_have_no_partner():
    first, second = activations(), activations()
    first[0, :, 3] = 0
    second[0, :, 5] = 0
    found = match_features(first, second)
    assert found.partner[0, 3] == -1
    assert found.correlation[0, 3].isnan()
    assert 5 not in found.partner[0].tolist()
    assert not found.active[0, 3]
    assert found.active[0, 5]
    # 23 are active; the one whose copy is silent has to take another's.
    assert found.shares(0.99) == pytest.approx(22 / 23)
    assert found.of_layer(0).shares(0.99) == pytest.approx(10 / 11)
    assert found.of_layer(1).shares(0.99) == 1
    fewer = match_features(first, second[..., :4])
    assert (fewer.partner >= 0).sum() == 8


def test_correlations_are_pearsons():
    first, second = activations(0)[0], activations(1)[0]
    found = correlations(first, second)
    assert found[2, 5].item() == pytest.approx(stats.pearsonr(first[:, 2], second[:, 5]).statistic)
