"""What attention is given is what it makes its queries, keys and values of."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import Sites, attach
from circuitkeep.capture.inputs import attention_input, position_turns
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head

HEAD = Head(1, 2)


@pytest.fixture(autouse=True, scope="module")
def _bridge_import():
    """transformer_lens warns when it is imported; that is not what these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_lens  # noqa: F401


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "neox", "gemma2"])
def test_values_are_made_of_the_stream_behind_its_norm(kind, tiny_model, as_bridge, tokens):
    model = tiny_model(kind)
    backend = attach(model)
    weights = head_weights(backend)
    with backend.capture(Sites(resid=(0,), v=(HEAD,))) as captured:
        backend.forward(tokens)
    read = attention_input(backend, 1, captured.resids[0])
    bias = 0 if weights.b_V is None else weights.b_V[1, 2]
    assert_close(read @ weights.W_V[1, 2] + bias, captured.vs[HEAD], atol=1e-5, rtol=1e-5)
    if kind in ("gpt2", "llama"):
        bridged = attention_input(attach(as_bridge(model)), 1, captured.resids[0])
        assert_close(bridged, read, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "neox", "gemma2"])
def test_queries_and_keys_are_turned_position_by_position(kind, tiny_model, tokens):
    backend = attach(tiny_model(kind))
    weights = head_weights(backend)
    with backend.capture(Sites(resid=(0,), q=(HEAD,), k=(HEAD,))) as captured:
        backend.forward(tokens)
    read = attention_input(backend, 1, captured.resids[0])
    turns = position_turns(backend, 1, tokens.shape[1], backend.d_head)
    for made, matrix, bias in (
        (captured.qs, weights.W_Q, weights.b_Q),
        (captured.ks, weights.W_K, weights.b_K),
    ):
        own = read @ matrix[1, 2] + (0 if bias is None else bias[1, 2])
        own = torch.einsum("bpr,prs->bps", own, turns)
        assert_close(own, made[HEAD], atol=1e-4, rtol=1e-4)


def test_without_rotation_nothing_is_turned(tiny_model):
    assert position_turns(attach(tiny_model("gpt2")), 0, 3, 8) is None
