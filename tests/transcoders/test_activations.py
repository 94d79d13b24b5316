import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.activations import above, jump_relu, largest, top_k


def test_what_is_above_its_threshold_counts_whole():
    pre = torch.tensor([[[0.4, 0.6, -3.0], [0.5, 2.0, 0.0]]])
    threshold = torch.tensor([[[0.5, 0.5, 0.0]]])
    assert_close(jump_relu(pre, threshold, 1.0), torch.tensor([[[0, 0.6, 0], [0, 2.0, 0]]]))


def even(low, high, n=200_001):
    """A feature whose pre-activations are spread evenly, as one layer of many tokens."""
    return torch.linspace(low, high, n, dtype=torch.float64)[None, :, None]


@pytest.mark.parametrize("bandwidth", [0.2, 1.0])
def test_gradients_are_those_of_the_mean_over_evenly_spread_pre_activations(bandwidth):
    # The mean over tokens is smooth in threshold and shift, though no token's activation is.
    pre, theta, step = even(-2.0, 3.0), 0.7, 1e-3

    def mean(shift, threshold):
        return (pre + shift).mul(pre + shift > threshold).mean().item()

    shift = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    threshold = torch.full((1, 1, 1), theta, dtype=torch.float64, requires_grad=True)
    jump_relu(pre + shift, threshold, bandwidth).mean().backward()
    by_shift = (mean(step, theta) - mean(-step, theta)) / (2 * step)
    by_threshold = (mean(0, theta + step) - mean(0, theta - step)) / (2 * step)
    assert shift.grad.item() == pytest.approx(by_shift, rel=2e-3)
    assert threshold.grad.item() == pytest.approx(by_threshold, rel=2e-3)
    assert by_threshold == pytest.approx(-theta / 5, rel=2e-3)  # minus theta times the density


def test_gradients_by_hand():
    pre = torch.tensor([[[0.9, 1.2, 5.0, -1.0]]], requires_grad=True)
    threshold = torch.full((1, 1, 4), 1.0, requires_grad=True)
    weight = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (jump_relu(pre, threshold, 0.5) * weight).sum().backward()
    # Within 0.25 of the threshold the slope is 1 / 0.5; above it the activation is the identity.
    assert_close(pre.grad, torch.tensor([[[2.0, 30.0, 100.0, 0.0]]]))
    assert_close(threshold.grad, torch.tensor([[[-2.0, -20.0, 0.0, 0.0]]]))


def test_a_shared_threshold_gets_the_sum_of_its_tokens_gradients():
    pre = torch.tensor([[[0.9], [1.1]]])
    threshold = torch.ones(1, 1, 1, requires_grad=True)
    jump_relu(pre, threshold, 1.0).sum().backward()
    assert threshold.grad.item() == -2.0


@pytest.mark.parametrize("seed", range(3))
def test_top_k_by_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(2, 5, 7, generator=generator)
    worth = torch.rand(2, 1, 7, generator=generator)
    expected = torch.zeros_like(pre)
    for layer in range(2):
        for token in range(5):
            scores = pre[layer, token] * worth[layer, 0]
            for feature in sorted(range(7), key=lambda f: -scores[f])[:3]:
                expected[layer, token, feature] = max(0.0, pre[layer, token, feature])
    assert_close(top_k(pre, worth, 3), expected)


def test_batch_top_k_keeps_k_per_token_on_average_the_best_of_all():
    pre = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0)) + 0.01
    worth = torch.rand(2, 1, 9, generator=torch.Generator().manual_seed(1))
    least = largest(pre * worth, 2 * 6).min(dim=1).values
    active = above(pre, worth, least)
    assert (active > 0).sum((1, 2)).tolist() == [12, 12]
    for layer in range(2):
        scores = (pre * worth)[layer]
        kept = active[layer] > 0
        assert scores[kept].min() >= scores[~kept].max()
        assert_close(active[layer][kept], pre[layer][kept])
    # Not the same number for every token: that is what tells it from TopK.
    assert len(set((active[0] > 0).sum(-1).tolist())) > 1


def test_what_is_not_above_0_is_never_active():
    pre = -torch.ones(1, 2, 3)
    worth = torch.ones(1, 1, 3)
    assert not top_k(pre, worth, 2).any()
    assert not above(pre, worth, torch.tensor([-5.0])).any()


def test_only_what_is_kept_has_a_gradient():
    pre = torch.tensor([[[3.0, 2.0, 1.0]]], requires_grad=True)
    worth = torch.ones(1, 1, 3, requires_grad=True)
    top_k(pre, worth, 2).sum().backward()
    assert pre.grad.tolist() == [[[1.0, 1.0, 0.0]]]
    assert worth.grad is None


def test_as_many_as_there_are():
    assert largest(torch.rand(2, 3, 4), 100).shape == (2, 12)
