"""What MLPs read and add is captured, and replaced."""

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import Edits, Sites, attach
from circuitkeep.circuits import Head

HEADS = tuple(Head(layer, index) for layer in range(2) for index in range(4))
KINDS = ["gpt2", "llama", "qwen3", "neox", "mistral", "gemma2"]
WHOLE = Sites(resid=(-1, 0, 1), mlp_in=(0, 1), mlp_out=(0, 1), logits=True)


@pytest.fixture(params=KINDS)
def backend(request, tiny_model):
    return attach(tiny_model(request.param))


def run(backend, tokens, sites=WHOLE):
    with backend.capture(sites) as captured:
        backend.forward(tokens)
    return captured


def test_a_layer_adds_its_mlp(backend, tokens):
    found = run(backend, tokens)
    for layer, mlp in enumerate(backend.mlps):
        read, written = found.mlp_ins[layer], found.mlp_outs[layer]
        before, after = found.resids[layer - 1], found.resids[layer]
        if mlp.parallel:
            assert torch.equal(read, before)
            assert not torch.allclose(read + written, after, atol=1e-4)
        else:
            assert_close(read + written, after, atol=1e-6, rtol=1e-5)
        own = backend.layers[layer].mlp
        again = own(mlp.norm(read))
        assert_close(again if mlp.last is own else mlp.last(again), written, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.mlp_in, torch.stack([found.mlp_ins[0], found.mlp_ins[1]], 1))


def test_what_is_read_hangs_in_the_graph(tiny_model, tokens):
    backend = attach(tiny_model("llama"))
    found = run(backend, tokens)
    found.mlp_outs[1].sum().backward()
    assert backend.layers[0].self_attn.q_proj.weight.grad.any()


def test_a_replaced_mlp_is_what_comes_after(backend, tokens):
    own = run(backend, tokens)
    given = torch.randn_like(own.mlp_outs[0])
    with backend.edit(Edits(mlp={0: given})):
        found = run(backend, tokens)
    assert torch.equal(found.mlp_outs[0], given)
    change = given - own.mlp_outs[0]
    assert_close(found.resids[0], own.resids[0] + change, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found.mlp_ins[1], own.mlp_ins[1], atol=1e-3)


def test_edits_one_in_another(tiny_model, tokens):
    backend = attach(tiny_model("gpt2"))
    own = run(backend, tokens).mlp_outs[1]
    with backend.edit(Edits(mlp={1: lambda written: written + 1})):
        with backend.edit(Edits(mlp={1: lambda written: 3 * written})):
            assert_close(run(backend, tokens).mlp_outs[1], 3 * (own + 1))
        assert_close(run(backend, tokens).mlp_outs[1], own + 1)
    assert torch.equal(run(backend, tokens).mlp_outs[1], own)


def test_the_pass_ends_after_the_last_mlp(tiny_model, tokens):
    backend = attach(tiny_model("llama"))
    whole = run(backend, tokens)
    # A head of the same layer does not end it before its MLP.
    found = run(backend, tokens, Sites(pattern=HEADS, mlp_out=(1,)))
    assert found.logits is None
    assert torch.equal(found.mlp_outs[1], whole.mlp_outs[1])
    found = run(backend, tokens, Sites(mlp_in=(0,)))
    assert torch.equal(found.mlp_ins[0], whole.mlp_ins[0])
    assert not found.resids


def test_found_inside_other_captures(tiny_model, tokens):
    backend = attach(tiny_model("llama"))
    with (
        backend.capture(Sites(resid=(0,))) as outer,
        backend.edit(Edits(resid={0: torch.zeros(())})),
        backend.capture(WHOLE) as inner,
    ):
        assert not outer.resids  # the search has left nothing behind
        backend.forward(tokens)
    assert not outer.resids[0].any()
    assert not inner.resids[0].any()
    assert inner.mlp_outs[0].any()


def test_a_resumed_pass_has_no_mlps_below(tiny_model, tokens):
    backend = attach(tiny_model("llama"))
    own = run(backend, tokens)
    with (
        pytest.raises(ValueError, match="cannot capture layer 0"),
        backend.capture(Sites(mlp_in=(0,))),
    ):
        backend.resume(1, own.resids[0], tokens)
    with backend.capture(Sites(mlp_in=(1,), logits=True)) as found:
        backend.resume(1, own.resids[0], tokens)
    assert_close(found.mlp_ins[1], own.mlp_ins[1])


def test_layers_that_there_are_not(tiny_model):
    backend = attach(tiny_model("llama"))
    for sites in (Sites(mlp_in=(2,)), Sites(mlp_out=(-1,)), Sites(resid=(-2,))):
        with pytest.raises(ValueError, match="has 2 layers"), backend.capture(sites):
            pass


def test_layers_that_are_not_known(tiny_model):
    backend = attach(tiny_model("llama"))
    layer = backend.layers[1]
    mlp = layer.mlp
    del layer.mlp
    layer.network = mlp
    with pytest.raises(ValueError, match="no module named mlp or feed_forward"):
        backend.check_sites(Sites(mlp_in=(1,)))
    layer.mlp = mlp
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ValueError, match="LlamaDecoderLayer does: what it writes is not added"):
        backend.check_sites(Sites(mlp_in=(1,)))


def test_refused_on_a_bridge(tiny_model, as_bridge):
    backend = attach(as_bridge(tiny_model("llama")))
    with pytest.raises(ValueError, match="MLPs are captured and edited on Hugging Face models"):
        backend.check_sites(Sites(mlp_out=(0,)))
