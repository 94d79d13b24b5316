"""Logits by the number of heads passed, against all paths enumerated by the oracle."""

import pytest
import torch

from circuitkeep.graphs.expansion import Expansion, expand, mean_expansion
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.writes import feature_readout, logit_readout

EXACT = 1e-9


def by_passed(held, writes, direction, stop, end):
    """Sums of path products by their number of heads."""
    total = torch.zeros(stop + 1, dtype=torch.float64)
    for vector, pos, first in writes:
        for path, arrived in held.paths(vector, pos, first, stop, end):
            total[len(path)] += arrived @ direction
    return total


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_attention_only_model_is_bigrams_skip_trigrams_and_composition(oracles, kind, layers):
    held = oracles.Held(oracles.attention_only(kind, 0, layers), oracles.prompt(0, length=4))
    frozen = freeze(held.backend, held.tokens)
    found = expand(frozen, logit_readout(frozen, 3))
    tokens, mlps, biases = found.parts
    writes = [(vector, pos, 0) for pos, vector in enumerate(held.embedding)]
    expected = by_passed(held, writes, held.logit_direction(3), layers, 3)
    torch.testing.assert_close(tokens, expected, atol=EXACT, rtol=0)
    assert mlps.abs().max() == 0
    value = held.logits[-1, 3] - held.logits[-1].mean()
    assert found.parts.sum().item() == pytest.approx(value.item(), abs=EXACT)
    assert found.shares.sum().item() == pytest.approx(1, abs=EXACT)
    if kind == "llama":  # no biases
        assert biases.abs().max() == 0
        first = tokens[0].item()
        assert found.lines()[0] == ("tokens", 0, first, first / found.value)
        assert len(found.lines()) == layers + 1


def test_a_head_less_model_is_its_bigrams(oracles):
    """Heads that write nothing leave the direct path, which is all of the logit."""
    model = oracles.attention_only("gpt2", 0)
    for block in oracles.blocks(model):
        block.attn.c_proj.weight[:] = 0
        block.attn.c_proj.bias[:] = 0
    held = oracles.Held(model, oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    found = expand(frozen, logit_readout(frozen, 3))
    only = [line for line in found.lines() if line[0] == "tokens"]
    assert [line[1] for line in only] == [0]
    direct = (held.embedding[-1] @ held.logit_direction(3)).item()
    assert only[0][2] == pytest.approx(direct, abs=EXACT)
    assert found.parts.sum().item() == pytest.approx(found.value, abs=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_mlps_are_sources_of_their_own(oracles, kind):
    held = oracles.Held(oracles.random_model(kind, 1, 3), oracles.prompt(1, length=4))
    frozen = freeze(held.backend, held.tokens)
    found = expand(frozen, logit_readout(frozen, 5))
    writes = [
        (vector, pos, layer + 1)
        for layer, row in enumerate(held.mlp_out)
        for pos, vector in enumerate(row)
    ]
    expected = by_passed(held, writes, held.logit_direction(5), 3, 3)
    torch.testing.assert_close(found.parts[1], expected, atol=EXACT, rtol=0)
    assert expected[2].abs() > 1e-4
    assert expected[3] == 0
    assert found.parts.sum().item() == pytest.approx(found.value, abs=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_feature_is_expanded_up_to_where_it_reads(oracles, kind, layer):
    held = oracles.Held(oracles.linear(kind, 0, 3), oracles.prompt(0))
    transcoder = oracles.exact_transcoder(held.model)
    frozen = freeze(held.backend, held.tokens)
    readout = feature_readout(frozen, transcoder, layer, 3, 2)
    found = expand(frozen, readout)
    assert found.parts.sum().item() == pytest.approx(readout.value, abs=EXACT)
    assert found.parts.shape[1] == layer + 1 + (kind == "gpt2")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_wired_circuits_are_of_their_orders(oracles, seed):
    tokens = torch.tensor([0, 7, 12, 9, 20, 7])
    for kind, said, passed in (("induction", 12, 1), ("positional", 0, 1), ("two_hops", None, 2)):
        model = oracles.wired(kind, seed).model
        row = tokens if said is not None else torch.tensor([0, 7, 12, 9, 20, 7, 4, 3])
        held = oracles.Held(model, row)
        frozen = freeze(held.backend, row)
        said = int(held.logits[-1].argmax()) if said is None else said
        found = expand(frozen, logit_readout(frozen, said))
        assert found.shares[0].argmax() == passed
        assert found.shares[0, passed] > 0.8, kind


def test_the_mean_of_expansions():
    one = Expansion(torch.tensor([[1.0, 2], [0, 0], [1, 0]]), 4.0)
    other = Expansion(torch.tensor([[3.0, 0], [0, 0], [1, -2]]), 2.0)
    mean = mean_expansion([one, other])
    assert mean.parts.tolist() == [[2, 1], [0, 0], [1, -1]]
    assert mean.value == 3
    assert mean.shares.sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match="no expansion"):
        mean_expansion([])
