"""Interventions on models that a transcoder replaces exactly, and against autograd by hand."""

import itertools

import pytest
import torch

from circuitkeep.capture import Edits, attach
from circuitkeep.circuits import Head
from circuitkeep.graphs.changes import FeatureChange, HeadChange, PathChange, clean_run
from circuitkeep.graphs.interventions import effects

from .oracles import (
    HEADS,
    VOCAB,
    Held,
    attention_only,
    exact_transcoder,
    linear,
    prompt,
    random_model,
    split_model,
    split_transcoder,
    value_output,
)

EVERY = torch.arange(VOCAB)
HOLDS = ("nothing", "patterns", "all", "all but the last norm")
LAST = 4


@pytest.fixture(scope="module", params=["gpt2", "neox"])
def exact(request):
    model = linear(request.param, seed=0, layers=3)
    return clean_run(attach(model), exact_transcoder(model), prompt(1))


@pytest.fixture(scope="module")
def split():
    model = split_model(seed=0)
    return clean_run(attach(model), split_transcoder(model), prompt(1))


def some_features(run, factor=0.0, every=7):
    return [(FeatureChange(*at, factor),) for at in run.activations.nonzero().tolist()[::every]]


def everything(run):
    layer, pos, feature = run.activations[:2].nonzero()[3].tolist()
    return [
        *some_features(run),
        *some_features(run, 2.0),
        (HeadChange(Head(1, 2), LAST),),
        (HeadChange(Head(0, 1), 3, key=1, factor=0.5),),
        (PathChange(layer, pos, feature, Head(2, 1), LAST),),
        (FeatureChange(layer, pos, feature), HeadChange(Head(2, 0), LAST, factor=2.0)),
    ]


def run_effects(run, interventions, replaced=False, hold="nothing", **rest):
    return effects(run, interventions, EVERY, replaced=replaced, hold=hold, **rest)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_changed_changes_nothing(exact, replaced, hold):
    rows = [(), (HeadChange(Head(1, 1), 2, factor=1.0),), some_features(exact, 1.0)[0]]
    assert run_effects(exact, rows, replaced, hold).abs().max() < 1e-12


@pytest.mark.parametrize("hold", HOLDS)
def test_an_exact_transcoder_answers_as_the_model(exact, hold):
    rows = everything(exact)
    true = run_effects(exact, rows, False, hold)
    # What the last layer writes before the last position reaches no logit.
    assert (true.abs().amax(1) > 1e-4).sum() > len(rows) / 2
    assert torch.allclose(run_effects(exact, rows, True, hold), true, atol=1e-12)


def test_holding_changes_what_comes_out(exact):
    found = [run_effects(exact, everything(exact), False, hold) for hold in HOLDS]
    for one, other in itertools.pairwise(found):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("hold", HOLDS)
def test_split_features_double_what_later_mlps_do_unless_their_own_write_alone_is_changed(
    split, hold
):
    rows = some_features(split)
    replaced = run_effects(split, rows, True, hold)
    own = run_effects(split, rows, False, hold, writes="own layer")
    assert torch.allclose(own, replaced, atol=1e-12)
    assert (run_effects(split, rows, False, hold) - replaced).abs().max() > 1e-3


@pytest.mark.parametrize("replaced", [True, False])
def test_rows_do_not_see_each_other(exact, replaced):
    rows = everything(exact)
    together = run_effects(exact, rows, replaced)
    assert torch.allclose(run_effects(exact, rows, replaced, rows=3), together, atol=1e-12)
    some = effects(exact, rows, torch.tensor([3, 0]), replaced=replaced, hold="nothing")
    assert torch.equal(some, together[:, [3, 0]])
    assert run_effects(exact, [], replaced).shape == (0, VOCAB)


def test_a_feature_of_the_true_model_is_added_to_what_its_mlp_writes(exact):
    at = exact.activations[1].nonzero()[0].tolist()
    pos, feature = at
    write = exact.activations[1, pos, feature] * exact.transcoder.W_dec[1][feature, 0]

    def without(own):
        own = own.clone()
        own[:, pos] -= write
        return own

    with exact.backend.edit(Edits(mlp={1: without})):
        logits = exact.backend.forward(exact.frozen.tokens[None])[0, -1]
    by_hand = logits - exact.frozen.logits[-1]
    found = run_effects(exact, [(FeatureChange(1, pos, feature),)])[0]
    assert torch.allclose(found, by_hand - by_hand.mean(), atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_held_passes_are_those_of_the_model_with_its_norms_held_by_hand(kind):
    model = attention_only(kind, seed=2, layers=3)
    tokens = prompt(3)
    run, held = clean_run(attach(model), None, tokens), Held(model, tokens)
    layer, head, query, key = 1, 2, LAST, 2
    vector = held.patterns[layer, head, query, key] * run.values[layer, head, key]
    written = vector @ value_output(model, layer, head)[1]
    leaves = held.mlp_out.clone()
    # The layer's MLP writes nothing, so what the head leaves out may be taken from it.
    leaves[layer, query] -= written
    _, logits = held.run_held(held.embedding, leaves)
    by_hand = logits[-1] - held.logits[-1]
    found = run_effects(run, [(HeadChange(Head(layer, head), query, key),)], False, HOLDS[2])[0]
    assert found.abs().max() > 1e-3
    assert torch.allclose(found, by_hand - by_hand.mean(), atol=1e-10)


def test_a_head_without_keys_writes_nothing(exact):
    head = Head(1, 3)

    def silent(own):
        own = own.clone()
        own[:, LAST] = 0
        return own

    with exact.backend.edit(Edits(z={head: silent})):
        logits = exact.backend.forward(exact.frozen.tokens[None])[0, -1]
    by_hand = logits - exact.frozen.logits[-1]
    found = run_effects(exact, [(HeadChange(head, LAST),)])[0]
    assert torch.allclose(found, by_hand - by_hand.mean(), atol=1e-12)
    keys = tuple(HeadChange(head, LAST, key) for key in range(LAST + 1))
    assert torch.allclose(run_effects(exact, [keys])[0], found, atol=1e-12)


def test_paths_through_all_heads_and_past_them_are_the_whole_feature(exact):
    """In the last but one layer, frozen: through each head of the last, and the direct write."""
    pos, feature = exact.activations[1].nonzero()[-1].tolist()
    assert pos == LAST
    whole = run_effects(exact, [(FeatureChange(1, pos, feature),)], True, HOLDS[2])[0]
    paths = [(PathChange(1, pos, feature, Head(2, i), LAST),) for i in range(HEADS)]
    through = run_effects(exact, paths, True, HOLDS[2]).sum(0)
    # What is left when the paths are cut: the direct write, and the last MLP's answer to it.
    uncut = tuple(PathChange(1, pos, feature, Head(2, i), LAST, 2.0) for i in range(HEADS))
    past = run_effects(exact, [(FeatureChange(1, pos, feature), *uncut)], True, HOLDS[2])[0]
    assert through.abs().max() > 1e-3
    assert torch.allclose(through + past, whole, atol=1e-12)


@pytest.mark.parametrize("reads", ["stream", "normalized"])
def test_normalized_streams_are_held_too(reads):
    model = linear("gpt2", seed=4, reads=reads)
    run = clean_run(attach(model), exact_transcoder(model, reads), prompt(5))
    rows = some_features(run)
    small = [(FeatureChange(c.layer, c.pos, c.feature, 1 - 1e-6),) for (c,) in rows]
    held = [1e6 * run_effects(run, small, True, HOLDS[2]), run_effects(run, rows, True, HOLDS[2])]
    # Linear, as nothing that divides is computed anew.
    assert torch.allclose(*held, atol=1e-6)
    live = run_effects(run, rows, True, HOLDS[0])
    assert torch.allclose(live, run_effects(run, rows, False, HOLDS[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (FeatureChange(3, 0, 0), "3 layers"),
        (FeatureChange(0, 5, 0), "5 positions"),
        (FeatureChange(0, 0, 12), "12 features"),
        (HeadChange(Head(0, 4), 1), "outside the model"),
        (HeadChange(Head(0, 1), 1, key=2), "no later than the query"),
        (HeadChange(Head(0, 1), 5), "below 5"),
        (PathChange(1, 0, 0, Head(1, 0), 2), "lower layers"),
        (PathChange(0, 3, 0, Head(1, 0), 2), "no later than the query"),
    ],
)
def test_what_is_not_there_is_refused(exact, change, words):
    with pytest.raises(ValueError, match=words):
        run_effects(exact, [(change,)])


def test_other_mistakes_are_refused(exact):
    alone = clean_run(exact.backend, None, exact.frozen.tokens)
    with pytest.raises(ValueError, match="only with a transcoder"):
        run_effects(alone, [(FeatureChange(0, 0, 0),)])
    with pytest.raises(ValueError, match="without a transcoder"):
        run_effects(alone, [], replaced=True)
    other = attach(random_model("gpt2", 0, layers=2))
    with pytest.raises(ValueError, match="3 layers of width 16, this model has 2"):
        clean_run(other, exact.transcoder, exact.frozen.tokens)
