"""Single paths, against all paths enumerated by the oracle."""

import pytest
import torch

from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.head_paths import Hop, strongest_paths
from circuitkeep.graphs.writes import Writer, feature_readout, logit_readout

EXACT = 1e-9


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_all_paths_are_found_with_their_products(oracles, kind):
    held = oracles.Held(oracles.attention_only(kind, 0), oracles.prompt(0, length=4))
    frozen = freeze(held.backend, held.tokens)
    readout = logit_readout(frozen, 3)
    found = strongest_paths(frozen, readout, count=10_000, beam=None)
    ours = {
        (path.source.pos, tuple((h.head, h.query, h.key) for h in path.hops)): path.value
        for path in found
        if path.source.kind == "embedding"
    }
    expected = {
        (pos, path): (arrived @ held.logit_direction(3)).item()
        for pos, vector in enumerate(held.embedding)
        for path, arrived in held.paths(vector, pos, 0, 2, 3)
    }
    assert ours.keys() == expected.keys()
    assert len(ours) > 100
    for way, value in expected.items():
        assert ours[way] == pytest.approx(value, abs=EXACT)
    total = sum(path.value for path in found) + readout.bias
    assert total == pytest.approx(readout.value, abs=EXACT)
    assert [abs(p.value) for p in found] == sorted((abs(p.value) for p in found), reverse=True)


def test_paths_into_a_feature_sum_to_its_pre_activation(oracles):
    model = oracles.split_model(0)
    transcoder = oracles.split_transcoder(model)
    held = oracles.Held(model, oracles.prompt(0, length=3))
    frozen = freeze(held.backend, held.tokens)
    for layer in range(3):
        readout = feature_readout(frozen, transcoder, layer, 2, 1)
        found = strongest_paths(frozen, readout, transcoder, count=100_000, beam=None)
        total = sum(path.value for path in found) + readout.bias
        assert total == pytest.approx(readout.value, abs=EXACT)


def test_a_narrow_beam_finds_the_strongest_of_all(oracles):
    held = oracles.Held(oracles.attention_only("llama", 1, layers=3), oracles.prompt(1))
    frozen = freeze(held.backend, held.tokens)
    readout = logit_readout(frozen, 2)
    everything = strongest_paths(frozen, readout, count=20, beam=None)
    assert strongest_paths(frozen, readout, count=20, beam=64)[:5] == everything[:5]
    # One way at each number of heads.
    few = strongest_paths(frozen, readout, count=20, beam=1)
    assert [len(path.hops) for path in few].count(1) <= 1
    assert few[0] in everything


def test_the_wired_two_hops_are_one_path(oracles):
    found = oracles.wired("two_hops", 0)
    (one,), (other,) = found.heads["previous-token"], found.heads["offset-5"]
    tokens = torch.tensor([0, 7, 12, 9, 20, 7, 4, 3])
    held = oracles.Held(found.model, tokens)
    frozen = freeze(held.backend, tokens)
    best = strongest_paths(frozen, logit_readout(frozen, 7), count=1)[0]
    assert best.source == Writer("embedding", -1, 1, 7)
    assert best.hops == (Hop(one, 2, 1), Hop(other, 7, 2))
    assert str(best) == f"embedding at 1 → {one} 2←1 → {other} 7←2: {best.value:+.3f}"
    assert isinstance(one, Head)
    assert best.value > 0.9 * frozen.logits[-1, 7]
