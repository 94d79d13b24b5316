"""Class means are those of the samples, and show what heads compare."""

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.capture.inputs import position_turns
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import CircuitError, Head, Manifold
from circuitkeep.geometry.class_means import class_means
from circuitkeep.probes import NO_VALUE

from .conftest import LETTERS, NUMBERS, batch_of

HEAD = Head(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_by_a_loop(kind, tiny_model):
    backend, batch = attach(tiny_model(kind)), batch_of(rows=40)
    found = class_means(backend, batch, [LETTERS, NUMBERS])["letters"]
    sites = Sites(q=(HEAD,), k=(HEAD,), z=(HEAD,), resid=(0,), mlp_out=(1,))
    with backend.capture(sites) as captured:
        backend.forward(batch.tokens)
    here = batch.variables["letter"] == 3
    assert int(found.counts[3].sum()) == int(here.sum())
    for own, values in (
        (found.queries[HEAD], captured.qs[HEAD]),
        (found.keys[HEAD], captured.ks[HEAD]),
        (found.zs[HEAD], captured.zs[HEAD]),
        (found.streams[0], captured.resids[0]),
        (found.mlps[1], captured.mlp_outs[1]),
    ):
        assert torch.allclose(own[3].float(), values[here].mean(0), atol=1e-5)
    assert found.values.tolist() == list(range(16))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_mean_queries_and_keys_are_those_of_what_is_read(kind, tiny_model):
    backend = attach(tiny_model(kind))
    found = class_means(backend, batch_of(rows=40), [LETTERS])["letters"]
    weights = head_weights(backend, [1])
    places = found.counts.shape[1]
    assert places == (1 if kind == "gpt2" else 12)
    turns = position_turns(backend, 1, places, backend.d_head)
    turns = torch.eye(backend.d_head)[None] if turns is None else turns
    for own, matrix, bias in (
        (found.queries, weights.W_Q, weights.b_Q),
        (found.keys, weights.W_K, weights.b_K),
    ):
        sums = found.read_sums[1] @ matrix[0, 2]
        if bias is not None:
            sums = sums + found.counts[..., None] * bias[0, 2]
        expected = torch.einsum("cpr,prs->cs", sums, turns) / found.counts.sum(1)[:, None]
        assert torch.allclose(own[HEAD].float(), expected, atol=1e-4)


def test_padding_and_values_outside_do_not_count(tiny_model):
    backend, batch = attach(tiny_model("gpt2")), batch_of(rows=40)
    few = Manifold("few", "letter", 0, (2, 5), step=2, dimensions=1)
    batch.mask[:, 8:] = False
    found = class_means(backend, batch, [few])["few"]
    counted = batch.variables["letter"][:, :8]
    expected = [int(((counted == a) | (counted == a + 1)).sum()) for a in (2, 4)]
    assert found.counts.sum(1).tolist() == expected
    assert found.values.tolist() == [2.5, 4.5]


def test_a_value_that_never_comes_is_refused(tiny_model):
    backend, batch = attach(tiny_model("gpt2")), batch_of(rows=40)
    batch.variables["letter"][batch.tokens == 7] = NO_VALUE
    with pytest.raises(CircuitError, match="letter is never 7 on these prompts; give more rows"):
        class_means(backend, batch, [LETTERS])
    unknown = Manifold("other", "colour", 0, (0, 9))
    with pytest.raises(CircuitError, match="do not know 'colour'"):
        class_means(backend, batch, [unknown])
