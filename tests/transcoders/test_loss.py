import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.loss import (
    below_threshold,
    decoder_norms,
    from_dead,
    reconstruction,
    sparsity,
)


def test_reconstruction_by_hand():
    error = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    # Layer 0: 10 over 2 tokens of 2 dimensions, layer 1: 8.
    assert reconstruction(error).item() == 10 / 4 + 8 / 4


def test_decoder_norms_are_over_all_layers_written_to():
    one = torch.zeros(2, 2, 2)
    one[0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    two = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]])
    assert decoder_norms([one, two]).tolist() == [[5.0, 0.0], [2.0, 1.0]]


def test_sparsity_by_loops_and_its_limit(make):
    norms = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    active = torch.tensor([[[0.0, 1.0], [0.3, 0.0]], [[2.0, 0.0], [0.0, 0.1]]])
    expected = 0.0
    for layer in range(2):
        for token in range(2):
            for feature in range(2):
                x = norms[layer, feature] * active[layer, token, feature]
                expected += math.tanh(4.0 * x) / 2
    assert sparsity(active, norms, 4.0).item() == pytest.approx(expected)
    # Steep, it is the number of active features per token, in all layers.
    assert sparsity(active, norms, 1e6).item() == pytest.approx(2.0)


def test_sparsity_does_not_change_with_the_units_of_a_feature_and_pulls_at_decoders():
    norms = torch.tensor([[1.0, 2.0]], requires_grad=True)
    active = torch.tensor([[[0.2, 0.1]]])
    assert_close(sparsity(active * 5, norms / 5, 4.0), sparsity(active, norms, 4.0))
    sparsity(active, norms, 4.0).backward()
    assert (norms.grad > 0).all()


def test_below_threshold_by_hand_and_its_gradient():
    pre = torch.tensor([[[0.5, 3.0]], [[-1.0, 1.0]]], requires_grad=True)
    threshold = torch.ones(2, 2)
    norms = torch.tensor([[2.0, 1.0], [1.0, 1.0]], requires_grad=True)
    loss = below_threshold(pre, threshold, norms)
    assert loss.item() == 0.5 * 2 + 2 * 1
    loss.backward()
    assert pre.grad.tolist() == [[[-2.0, 0.0]], [[-1.0, 0.0]]]
    assert norms.grad is None  # else it would shrink the decoders of what is seldom active


def test_dead_features_learn_the_error_and_nothing_else_does(make):
    transcoder = make(layers=2).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    stream, error = torch.randn(2, 2, 5, 4, generator=generator).unbind()
    error = error.requires_grad_(True)
    dead = torch.zeros(2, 6, dtype=torch.bool)
    dead[0, 1] = dead[1, 4] = True
    loss = from_dead(transcoder, transcoder.pre_activations(stream), error, dead, 3)
    # By hand: what the two write, without the constant that the living ones have used.
    values = torch.relu(transcoder.pre_activations(stream)) * dead[:, None]
    written = transcoder.decode(values) - transcoder.decode(torch.zeros_like(values))
    assert_close(loss, reconstruction(error - written))
    loss.backward()
    assert error.grad is None
    assert transcoder.b_dec.grad.abs().max() < 1e-6
    assert transcoder.W_enc.grad[dead].any()
    assert not transcoder.W_enc.grad[~dead].any()
    for layer, decoders in enumerate(transcoder.W_dec):
        assert not decoders.grad[~dead[layer]].any()


def test_at_most_k_dead_features_and_nothing_where_none_is_dead(make):
    transcoder = make(layers=1, features=8, cross_layer=False)
    pre = torch.rand(1, 3, 8) + 0.1
    everything = torch.ones(1, 8, dtype=torch.bool)
    error = torch.randn(1, 3, 4)
    kept = pre * (pre >= pre.topk(2, dim=-1).values[..., -1:])
    written = transcoder.decode(kept) - transcoder.b_dec[:, None]
    loss = from_dead(transcoder, pre, error, everything, 2)
    assert_close(loss, reconstruction(error - written))
    assert from_dead(transcoder, pre, error, ~everything, 2).item() == 0
