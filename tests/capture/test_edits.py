"""What is put in the place of what a model computes arrives, on both backends."""

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import Edits, Sites, attach
from circuitkeep.circuits import Head

HEADS = tuple(Head(layer, index) for layer in range(2) for index in range(4))
KINDS = ["gpt2", "llama", "qwen3", "neox", "mistral"]


@pytest.fixture(params=["hf", "bridge"])
def backend(request, tiny_model, as_bridge):
    model = tiny_model("llama")
    return attach(model if request.param == "hf" else as_bridge(model))


@pytest.mark.parametrize("kind", [*KINDS, "gemma2"])
def test_a_head_fed_with_its_own_inputs_changes_nothing(kind, tiny_model, tokens):
    backend = attach(tiny_model(kind))
    everything = Sites(HEADS, HEADS, (), HEADS, HEADS, HEADS, (-1, 0, 1), (), (0, 1))
    with backend.capture(Sites(**{**vars(everything), "logits": True})) as own:
        logits = backend.forward(tokens)
    for name in ("pattern", "q", "k", "v", "z", "resid"):
        with backend.edit(Edits(**{name: getattr(own, name + "s")})):
            assert_close(backend.forward(tokens), logits, atol=1e-5, rtol=1e-5)
        shuffled = {key: value.flip(0) for key, value in getattr(own, name + "s").items()}
        with backend.edit(Edits(**{name: shuffled})):
            assert not torch.allclose(backend.forward(tokens), logits, atol=1e-3), name
    with backend.edit(Edits(mlp=own.mlp_outs)):
        assert_close(backend.forward(tokens), logits, atol=1e-5, rtol=1e-5)
    with backend.edit(Edits(mlp={1: lambda written: 2 * written})):
        assert not torch.allclose(backend.forward(tokens), logits, atol=1e-4)
    assert torch.equal(backend.forward(tokens), logits)


def test_q_k_and_v_make_the_pattern_and_z(tiny_model, tokens):
    backend = attach(tiny_model("llama"))
    sites = Sites(pattern=HEADS, q=HEADS, k=HEADS, v=HEADS, z=HEADS)
    with backend.capture(sites) as own:
        backend.forward(tokens)
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    for head in HEADS:
        scores = own.qs[head] @ own.ks[head].mT * 8**-0.5
        pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        assert_close(own.patterns[head], pattern, atol=1e-5, rtol=1e-5)
        assert_close(own.zs[head], pattern @ own.vs[head], atol=1e-5, rtol=1e-5)


def test_patterns_by_both_backends(tiny_model, as_bridge, tokens):
    model = tiny_model("llama")
    values = {head: torch.rand(3, 12, 12).tril().softmax(-1) for head in HEADS[2:5]}
    found = []
    for backend in (attach(model), attach(as_bridge(model))):
        with backend.edit(Edits(pattern=values)), backend.capture(Sites(z=HEADS)) as captured:
            logits = backend.forward(tokens)
        assert logits is None
        with backend.edit(Edits(pattern=values)):
            found.append((captured.z, backend.forward(tokens)))
    assert_close(*(z for z, _ in found), atol=1e-5, rtol=1e-5)
    assert_close(*(logits for _, logits in found), atol=1e-5, rtol=1e-5)


def test_the_stream(backend, tokens):
    stream = torch.randn(3, 12, 32)
    with backend.capture(Sites(resid=(-1, 0, 1), logits=True)) as plain:
        logits = backend.forward(tokens)
    with (
        backend.edit(Edits(resid={0: stream, -1: lambda own: own * 2})),
        backend.capture(Sites(resid=(-1, 0, 1), logits=True)) as captured,
    ):
        found = backend.forward(tokens)
    assert_close(captured.resids[-1], plain.resids[-1] * 2)
    assert_close(captured.resids[0], stream)
    assert_close(found, backend.resume(1, stream, tokens), atol=1e-5, rtol=1e-5)
    assert_close(backend.forward(tokens), logits, atol=0, rtol=0)


def test_edits_follow_one_another(backend, tokens):
    head = Head(0, 1)
    with (
        backend.edit(Edits(z={head: torch.ones(8)})),
        backend.edit(Edits(z={head: lambda own: own + 1})),
        backend.capture(Sites(z=(head,))) as captured,
    ):
        backend.forward(tokens)
    assert (captured.z == 2).all()


def test_gradients_reach_an_edit(backend, tokens):
    shift = torch.zeros(3, 12, 8, requires_grad=True)
    with backend.edit(Edits(z={Head(0, 1): lambda own: own + shift})):
        backend.forward(tokens).square().sum().backward()
    assert shift.grad.abs().max() > 1e-3


def test_edits_outside_the_model(backend):
    for edits, message in (
        (Edits(pattern={Head(0, 4): torch.zeros(1)}), "L0H4 is outside"),
        (Edits(resid={2: torch.zeros(1)}), "layer 2 is outside"),
        (Edits(resid={-2: torch.zeros(1)}), "layer -2 is outside"),
    ):
        with pytest.raises(ValueError, match=message), backend.edit(edits):
            pass
