"""Scores taken apart sum to what decides where heads attend."""

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.scores import attribute_score
from circuitkeep.graphs.writes import Writer

EXACT = 1e-9
ROTARY = 1e-7  # angles are computed in single precision, from other positions here


def passed(oracles, kind, seed=0, layers=3):
    model = oracles.random_model(kind, seed, layers)
    held = oracles.Held(model, oracles.prompt(seed))
    return held, freeze(held.backend, held.tokens)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("follow", [False, True])
def test_differences_of_scores_are_log_ratios_of_attention(oracles, kind, follow):
    held, frozen = passed(oracles, kind)
    for head in (Head(0, 1), Head(1, 3), Head(2, 2)):
        pattern = held.patterns[head.layer, head.index, 4]
        found = [
            attribute_score(held.backend, frozen, head, 4, key, follow=follow) for key in range(5)
        ]
        scores = torch.tensor([one.score for one in found], dtype=torch.float64)
        torch.testing.assert_close(scores.softmax(0), pattern, atol=ROTARY, rtol=0)
        for key, one in enumerate(found):
            assert one.matrix.sum().item() == pytest.approx(one.score, abs=EXACT)
            assert one.attention == pattern[key]
            contrast = attribute_score(
                held.backend, frozen, head, 4, key, contrast=True, follow=follow
            )
            others = scores[torch.arange(5) != key].mean()
            assert contrast.score == pytest.approx((scores[key] - others).item(), abs=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_pairs_are_products_of_what_was_written(oracles, kind):
    """By hand, with the model's own modules: two vectors, one query and one key."""
    held, frozen = passed(oracles, kind)
    head, query, key = Head(1, 2), 4, 1
    found = attribute_score(held.backend, frozen, head, query, key)
    norm = oracles.norms(held.model)[1]
    at_query = frozen.attend_heads(0, frozen.streams[0])[3, query]
    pairs = {}
    for name, vector in (("L0H3", at_query), ("embedding", held.embedding[query])):
        # A score is bilinear: the second difference of scores along the two vectors.
        for part, other in (("embedding", held.embedding[key]), ("mlp", held.mlp_out[0, key])):
            pairs[name, part] = bilinear(oracles, held, norm, head, (query, vector), (key, other))
    kinds = {"L0H3": Writer("head", 0, query, 3)}
    for (name, part), expected in pairs.items():
        writer = kinds.get(name, Writer("embedding", -1, query, int(held.tokens[query])))
        other = (
            Writer("mlp", 0, key)
            if part == "mlp"
            else Writer("embedding", -1, key, int(held.tokens[key]))
        )
        i, j = found.query_writers.index(writer), found.key_writers.index(other)
        assert found.matrix[i, j].item() == pytest.approx(expected, abs=ROTARY)


def bilinear(oracles, held, norm, head, at_query, at_key):
    """The mixed difference of log attention ratios as the two streams get a vector more."""
    from circuitkeep.capture import Edits, Sites

    (query, vector), (key, other) = at_query, at_key
    entered = held.backend.capture(Sites(resid=(0,)))
    with entered as captured:
        held.backend.forward(held.tokens[None])
    stream = captured.resids[0][0]

    def score(more, and_more):
        changed = stream.clone()
        changed[query] += more * vector
        changed[key] += and_more * other
        hook = norm.register_forward_hook(
            lambda module, args, _out: oracles.held_norm(module, args[0], held.sizes[1])
        )
        with (
            held.backend.edit(Edits(resid={0: changed[None]})),
            held.backend.capture(Sites(q=(head,), k=(head,))) as captured,
        ):
            held.backend.forward(held.tokens[None])
        hook.remove()
        return captured.qs[head][0, query] @ captured.ks[head][0, key] / 2  # of four dimensions

    return (score(1, 1) - score(1, 0) - score(0, 1) + score(0, 0)).item()


def test_an_exact_transcoder_takes_mlps_apart(oracles):
    model = oracles.split_model(0)
    transcoder = oracles.split_transcoder(model)
    held = oracles.Held(model, oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    head = Head(2, 1)
    whole = attribute_score(held.backend, frozen, head, 3, 1)
    parts = attribute_score(held.backend, frozen, head, 3, 1, transcoder)
    assert parts.score == pytest.approx(whole.score, abs=EXACT)
    by_key = parts.by_key
    # What features write to the layers below the head is what the MLPs write, less the biases.
    features = sum(value for writer, value in by_key.items() if writer.kind == "feature")
    errors = sum(abs(value) for writer, value in by_key.items() if writer.kind == "error")
    biases = sum(value for writer, value in by_key.items() if writer.kind == "constant")
    mlps = sum(value for writer, value in whole.by_key.items() if writer.kind == "mlp")
    constants = sum(value for writer, value in whole.by_key.items() if writer.kind == "constant")
    assert features + biases == pytest.approx(mlps + constants, abs=EXACT)
    assert errors < EXACT < 0.01 < abs(features)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_wired_induction_head_looks_for_what_the_mover_wrote(oracles, seed):
    found = oracles.wired("induction", seed)
    (mover,), (finder,) = found.heads["previous-token"], found.heads["induction"]
    tokens = torch.tensor([0, 7, 12, 9, 20, 7])
    held = oracles.Held(found.model, tokens)
    frozen = freeze(held.backend, tokens)
    for contrast in (False, True):
        score = attribute_score(held.backend, frozen, finder, 5, 2, contrast=contrast)
        query, key, value = score.strongest(1)[0]
        assert query == Writer("embedding", -1, 5, 7)
        assert key == Writer("head", mover.layer, 2, mover.index)
        assert value == pytest.approx(40, rel=0.1)  # SHARP
        assert next(iter(score.by_key)) == key
        assert next(iter(score.by_query)) == query
    followed = attribute_score(held.backend, frozen, finder, 5, 2, follow=True)
    query, key, value = followed.strongest(1)[0]
    # The mover copied the token before.
    assert (query, key) == (Writer("embedding", -1, 5, 7), Writer("embedding", -1, 1, 7))
    assert value == pytest.approx(40, rel=0.1)


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_norms_on_queries_and_sliding_windows_are_read_too(tiny_model, tokens, kind):
    backend = attach(tiny_model(kind, dtype=torch.float64))
    frozen = freeze(backend, tokens[0])
    pattern = frozen.patterns[1, 2, 11]
    seen = [key for key in range(12) if pattern[key] > 0]
    scores = [attribute_score(backend, frozen, Head(1, 2), 11, key).score for key in seen]
    rebuilt = torch.tensor(scores, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(rebuilt, pattern[seen], atol=1e-6, rtol=0)
    assert len(seen) == (4 if kind == "mistral" else 12)


def test_what_has_no_score_is_refused(oracles, tiny_model, tokens):
    held, frozen = passed(oracles, "gpt2")
    for settings in ({"query": 1, "key": 2}, {"query": 5, "key": 2}):
        with pytest.raises(ValueError, match="choose positions below 5"):
            attribute_score(held.backend, frozen, Head(0, 0), **settings)
    with pytest.raises(ValueError, match="another key beside it"):
        attribute_score(held.backend, frozen, Head(0, 0), 0, 0, contrast=True)
    with pytest.raises(ValueError, match="outside the model"):
        attribute_score(held.backend, frozen, Head(0, 9), 1, 0)
    backend = attach(tiny_model("gemma2"))
    with pytest.raises(ValueError, match="a softcap"):
        attribute_score(backend, freeze(backend, tokens[0]), Head(0, 0), 3, 1)
