import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import Sites, attach
from circuitkeep.causal import Patched, patch, patch_each_head, patch_each_residual
from circuitkeep.causal.pairs import check_pairs, runs
from circuitkeep.circuits import Head

from .conftest import HEADS, hooked, metric_by_hand, outputs_by_hand

METRICS = ["log_prob_nats", "logit_difference"]
EVERYWHERE = {"atol": 1e-5, "rtol": 1e-5, "equal_nan": True}


@pytest.fixture(params=["hf", "bridge"])
def subject(request, tiny_model, as_bridge):
    """A model, and a backend attached to it or to its bridge."""

    def make(kind, **changes):
        model = tiny_model(kind, **changes)
        return model, attach(model if request.param == "hf" else as_bridge(model))

    return make


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_head_outputs_by_hand(kind, direction, metric, subject, pairs):
    model, backend = subject(kind)
    base, source = runs(pairs, direction)
    zs = outputs_by_hand(model, source.tokens)
    each = patch_each_head(backend, pairs, HEADS, direction, metric)
    clean = metric_by_hand(model, pairs.tokens, pairs, metric)
    corrupted = metric_by_hand(model, pairs.corrupted.tokens, pairs, metric)
    assert_close(each.clean, clean, **EVERYWHERE)
    assert_close(each.corrupted, corrupted, **EVERYWHERE)
    for i, head in enumerate(HEADS):

        def edit(layer, z, head=head):
            if layer == head.layer:
                z[:, :, head.index] = zs[layer][:, :, head.index]

        with hooked(model, edit):
            expected = metric_by_hand(model, base.tokens, pairs, metric)
        assert_close(each.patched[:, i], expected, **EVERYWHERE)
        alone = patch(backend, pairs, Sites(z=(head,)), direction, metric)
        assert_close(alone.patched, expected, **EVERYWHERE)
    rows = (each.patched - corrupted[:, None]) / (clean - corrupted)[:, None]
    assert_close(each.normalised_rows, rows, atol=1e-4, rtol=1e-4, equal_nan=True)
    means = (each.patched.nanmean(0) - corrupted.nanmean()) / (clean - corrupted).nanmean()
    assert_close(each.normalised, means, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_patterns_by_hand(kind, direction, subject, pairs):
    """The other run's pattern and the own values, which eager attention hands out."""
    model, backend = subject(kind)
    each = patch_each_head(backend, pairs, HEADS, direction, site="pattern")
    base, source = runs(pairs, direction)
    plain = attach(model)
    with plain.capture(Sites(pattern=HEADS)) as there:
        plain.forward(source.tokens)
    with plain.capture(Sites(v=HEADS)) as here:
        plain.forward(base.tokens)
    for i, head in enumerate(HEADS):
        z_alone = there.patterns[head] @ here.vs[head]

        def edit(layer, z, head=head, z_alone=z_alone):
            if layer == head.layer:
                z[:, :, head.index] = z_alone

        with hooked(model, edit):
            expected = metric_by_hand(model, base.tokens, pairs, "log_prob_nats")
        assert_close(each.patched[:, i], expected, **EVERYWHERE)
        alone = patch(backend, pairs, Sites(pattern=(head,)), direction)
        assert_close(alone.patched, expected, **EVERYWHERE)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_residual_by_hand(kind, direction, subject, pairs):
    model, backend = subject(kind)
    base, source = runs(pairs, direction)
    layers = model.transformer.h if kind == "gpt2" else model.model.layers
    told = []
    each = patch_each_residual(backend, pairs, direction, progress=lambda *n: told.append(n))
    assert each.patched.shape == (6, 3, 9)
    assert told[-1] == (6 * 3 * 9, 6 * 3 * 9)
    with torch.no_grad():
        streams = model(source.tokens, output_hidden_states=True).hidden_states

    for depth, position in ((0, 3), (1, 0), (1, 8)):
        # What enters layer `depth`.
        def edit(module, args, kwargs, depth=depth, position=position):
            hidden = args[0].clone()
            hidden[:, position] = streams[depth][:, position]
            return (hidden, *args[1:]), kwargs

        handle = layers[depth].register_forward_pre_hook(edit, with_kwargs=True)
        expected = metric_by_hand(model, base.tokens, pairs, "log_prob_nats")
        handle.remove()
        assert_close(each.patched[:, depth, position], expected, **EVERYWHERE)
        here = torch.zeros(6, 9, dtype=torch.bool)
        here[:, position] = True
        alone = patch(backend, pairs, Sites(resid=(depth - 1,)), direction, positions=here)
        assert_close(alone.patched, expected, **EVERYWHERE)
    base_value = each.corrupted if direction == "denoising" else each.clean
    source_value = each.clean if direction == "denoising" else each.corrupted
    # At the last layer, a position speaks for the answers asked there alone.
    assert_close(each.patched[2:, 2, 3], base_value[2:], **EVERYWHERE)
    assert_close(each.patched[2, 2, 8], source_value[2], **EVERYWHERE)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "qwen3", "mistral"])
def test_all_heads_and_the_entry_restore_the_clean_run(kind, subject, pairs):
    _, backend = subject(kind)
    whole = patch(backend, pairs, Sites(z=HEADS, resid=(-1,)), "denoising")
    assert_close(whole.patched, whole.clean, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert whole.normalised.item() == pytest.approx(1, abs=1e-5)
    entry = patch(backend, pairs, Sites(resid=(-1,)), "noising")
    assert_close(entry.patched, entry.corrupted, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert entry.normalised.item() == pytest.approx(0, abs=1e-5)


def test_the_size_of_a_pass_makes_no_difference(tiny_model, pairs, monkeypatch):
    backend = attach(tiny_model("llama"))
    positions = torch.rand(6, 9) < 0.5

    def everything():
        return [
            patch_each_head(backend, pairs, HEADS, "denoising", site="pattern").patched,
            patch_each_residual(backend, pairs, "noising", layers=(0, 1)).patched,
            patch(backend, pairs, Sites(z=HEADS), "noising", positions=positions).patched,
        ]

    expected = everything()
    monkeypatch.setattr("circuitkeep.causal.answers.CHUNK", 2)
    for one, other in zip(everything(), expected, strict=True):
        assert_close(one, other, **EVERYWHERE)


def test_ground_truth(wired_model, wired_circuit):
    """Corrupting the token that is to be copied; the induction head alone carries it."""
    from circuitkeep.probes import ProbeBatch

    tokens = torch.tensor([[0, 5, 6, 7, 8, 5, 6], [0, 9, 3, 4, 2, 9, 3]])
    other = tokens.clone()
    other[:, 3] = torch.tensor([11, 12])
    labels = {
        "mask": torch.ones(2, 7, dtype=torch.bool),
        "targets": {},
        "answer_row": torch.tensor([0, 1]),
        "answer_position": torch.tensor([6, 6]),
        "answer": tokens[:, 3],
        "distractor": other[:, 3],
    }
    batch = ProbeBatch(tokens, **labels, corrupted=ProbeBatch(other, **labels))
    backend = attach(wired_model)
    share = patch_each_head(backend, batch, HEADS, "denoising", "logit_difference").normalised
    assert_close(share, torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 0]), atol=1e-3, rtol=0)
    share = patch_each_residual(backend, batch, "denoising", "logit_difference").normalised
    assert_close(share[:2, 3], torch.ones(2), atol=1e-3, rtol=0)
    assert_close(share[2, 6].item(), 1.0, atol=1e-3, rtol=0)
    assert share.abs().sum().item() == pytest.approx(3, abs=0.01)


def test_normalised_by_hand():
    patched = Patched(
        clean=torch.tensor([4.0, 2.0, math.nan]),
        corrupted=torch.tensor([0.0, 2.0, math.nan]),
        patched=torch.tensor([[1.0, 4.0], [3.0, 2.0], [math.nan, math.nan]]),
    )
    assert_close(patched.normalised, torch.tensor([0.5, 1.0]))
    assert_close(patched.normalised_rows[0], torch.tensor([0.25, 1.0]))
    assert patched.normalised_rows[1:].isnan().all()
    with pytest.raises(ValueError, match="the same on clean and corrupted prompts"):
        Patched(torch.ones(1), torch.ones(1), torch.ones(1)).normalised  # noqa: B018


def test_pairs_that_do_not_fit(pairs):
    corrupted = pairs.corrupted
    with pytest.raises(ValueError, match="has no corrupted ones"):
        check_pairs(replace(pairs, corrupted=None))
    with pytest.raises(ValueError, match="6 clean prompts but 2 corrupted"):
        check_pairs(replace(pairs, corrupted=corrupted.select(torch.tensor([0, 1]))))
    mask = corrupted.mask.clone()
    mask[2, -2:] = False
    with pytest.raises(ValueError, match="row 2: the clean prompt has 9 tokens, the corrupted on"):
        check_pairs(replace(pairs, corrupted=replace(corrupted, mask=mask)))
    moved = replace(corrupted, answer_position=corrupted.answer_position - 1)
    with pytest.raises(ValueError, match="answers at different positions"):
        check_pairs(replace(pairs, corrupted=moved))
    with pytest.raises(ValueError, match="unknown direction 'denoise'; did you mean 'denoising'"):
        runs(pairs, "denoise")


def test_sites_that_cannot_be_patched(tiny_model, as_bridge, pairs):
    backend = attach(tiny_model("llama"))
    for sites in (Sites(q=HEADS), Sites(result=HEADS)):
        with pytest.raises(ValueError, match="patching is done at z, pattern and resid"):
            patch(backend, pairs, sites, "noising")
    bridge = attach(as_bridge(tiny_model("opt")))
    with pytest.raises(ValueError, match=r"bridge delegates attention .* would have no effect"):
        patch(bridge, pairs, Sites(pattern=(Head(0, 0),)), "noising")
