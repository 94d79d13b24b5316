import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.causal import attribution_patch, patch_each_head
from circuitkeep.causal.pairs import runs

from .conftest import HEADS, hooked, metric_by_hand, outputs_by_hand


@pytest.mark.parametrize("metric", ["log_prob_nats", "logit_difference"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_slope_towards_the_other_run(kind, direction, metric, tiny_model, pairs):
    """Exact for a metric made linear: the central difference along (other - own), in float64."""
    model = tiny_model(kind, dtype=torch.float64)
    base, source = runs(pairs, direction)
    own, other = (outputs_by_hand(model, prompts.tokens) for prompts in (base, source))
    found = attribution_patch(attach(model), pairs, HEADS, direction, metric)
    start = metric_by_hand(model, base.tokens, pairs, metric)
    for i, head in enumerate(HEADS):
        ends = []
        for step in (1e-3, -1e-3):

            def edit(layer, z, head=head, step=step):
                if layer == head.layer:
                    difference = other[layer] - own[layer]
                    z[:, :, head.index] += step * difference[:, :, head.index]

            with hooked(model, edit):
                ends.append(metric_by_hand(model, base.tokens, pairs, metric))
        slope = (ends[0] - ends[1]) / 2e-3
        effect = (found.estimate.patched[:, i] - start).float()
        assert_close(effect, slope, atol=1e-3, rtol=1e-2, equal_nan=True)
    assert found.exact is None
    assert found.confirmed == ()
    assert not found.estimate.patched.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("bridge", [False, True])
def test_the_largest_are_confirmed(bridge, tiny_model, as_bridge, pairs):
    model = tiny_model("gpt2")
    backend = attach(as_bridge(model) if bridge else model)
    with torch.no_grad():  # whatever the caller's mode
        found = attribution_patch(backend, pairs, HEADS, "noising", confirm_top=3)
    effects = (found.estimate.patched - found.estimate.clean[:, None]).nanmean(0).abs()
    order = sorted(HEADS, key=lambda head: -effects[HEADS.index(head)].item())
    assert found.confirmed == tuple(order[:3])
    exact = patch_each_head(backend, pairs, found.confirmed, "noising")
    assert_close(found.exact.patched, exact.patched, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert_close(found.estimate.corrupted, exact.corrupted, equal_nan=True)


def test_chunks_make_no_difference(tiny_model, pairs, monkeypatch):
    backend = attach(tiny_model("llama"))
    expected = attribution_patch(backend, pairs, HEADS, "denoising").estimate.patched
    monkeypatch.setattr("circuitkeep.causal.answers.CHUNK", 1)
    found = attribution_patch(backend, pairs, HEADS, "denoising").estimate.patched
    assert_close(found, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_too_many_to_confirm(tiny_model, pairs):
    with pytest.raises(ValueError, match="confirm_top=9: choose a number from 0 to 8"):
        attribution_patch(attach(tiny_model("llama")), pairs, HEADS, "noising", confirm_top=9)
