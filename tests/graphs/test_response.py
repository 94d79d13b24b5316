"""The graph's predictions are what happens, wherever the graph is all there is."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head
from circuitkeep.graphs import Graph, Node
from circuitkeep.graphs.changes import FeatureChange, HeadChange, PathChange, clean_run
from circuitkeep.graphs.choice import chosen_interventions
from circuitkeep.graphs.interventions import effects
from circuitkeep.graphs.response import node_weights, predicted_effects
from circuitkeep.graphs.trace import trace

from .oracles import (
    VOCAB,
    attention_only,
    exact_transcoder,
    linear,
    prompt,
    split_model,
    split_transcoder,
)

EVERY = list(range(VOCAB))
LAST = 4
FROZEN = "all"


def traced(model, transcoder, seed=1, **rest):
    backend, tokens = attach(model), prompt(seed)
    graph = trace(backend, tokens.tolist(), transcoder, logits=EVERY, **rest)
    return clean_run(backend, transcoder, tokens), graph


@pytest.fixture(scope="module", params=["gpt2", "neox", "split", "normalized"])
def known(request):
    if request.param == "split":
        model = split_model(seed=0)
        return traced(model, split_transcoder(model))
    reads = "normalized" if request.param == "normalized" else "stream"
    kind = "neox" if request.param == "neox" else "gpt2"
    model = linear(kind, seed=0, layers=3, reads=reads)
    return traced(model, exact_transcoder(model, reads))


def rows_of(run, graph):
    rows = list(chain(*chosen_interventions(run, graph, seed=3).values()))
    layer, pos, feature = run.activations[:1].nonzero()[1].tolist()
    other = run.activations[2].nonzero()[0].tolist()
    together = (
        FeatureChange(layer, pos, feature, 0.0),
        FeatureChange(2, *other, 3.0),
        PathChange(layer, pos, feature, Head(2, 1), LAST, 2.0),
    )
    return [*rows, together, (HeadChange(Head(0, 1), 2, factor=0.5),)]


def actual(run, graph, rows, **where):
    tokens = torch.tensor([node.index for node in graph.nodes if node.kind == "logit"])
    return effects(run, rows, tokens, hold=FROZEN, **where)


def test_predictions_are_what_the_frozen_replacement_does(known):
    run, graph = known
    rows = rows_of(run, graph)
    predicted = predicted_effects(run, graph, rows)
    assert predicted.shape == (len(rows), VOCAB)
    assert (predicted.abs().amax(1) > 1e-3).sum() > len(rows) / 2
    assert torch.allclose(actual(run, graph, rows, replaced=True), predicted, atol=1e-9)


def test_they_are_what_the_frozen_model_does(known):
    run, graph = known
    rows = rows_of(run, graph)[:-2]
    found = actual(run, graph, rows, replaced=False, writes="own layer")
    predicted = predicted_effects(run, graph, rows)
    if run.transcoder.config.reads == "stream":
        assert torch.allclose(found, predicted, atol=1e-9)
    else:
        # True MLPs divide by norms of their own, which the graph holds.
        assert (found - predicted).abs().max() > 1e-3


def test_the_last_norm_may_answer(known):
    run, graph = known
    rows = rows_of(run, graph)
    predicted = predicted_effects(run, graph, rows, last_norm=True)
    tokens = torch.tensor([node.index for node in graph.nodes if node.kind == "logit"])
    found = effects(run, rows, tokens, replaced=True, hold="all but the last norm")
    assert torch.allclose(found, predicted, atol=1e-9)
    assert (predicted - predicted_effects(run, graph, rows)).abs().max() > 1e-2


def test_attention_alone_is_predicted_too():
    run, graph = traced(attention_only("llama", seed=2, layers=3), None, seed=3)
    rows = list(chain(*chosen_interventions(run, graph).values()))
    assert len(rows) == 8
    predicted = predicted_effects(run, graph, rows)
    assert predicted.abs().amax(1).min() > 1e-3
    assert torch.allclose(actual(run, graph, rows, replaced=False), predicted, atol=1e-9)


def test_a_feature_that_is_set_answers_to_nothing(known):
    """A second change of a feature downstream is worth its own effect, whatever comes before."""
    run, graph = known
    early, late = (
        next(c for c in sorted(graph.nodes) if c.kind == "feature" and c.layer == layer)
        for layer in (0, 2)
    )
    changes = [FeatureChange(n.layer, n.pos, n.index) for n in (early, late)]
    first, kept = predicted_effects(
        run, graph, [tuple(changes), (changes[0], FeatureChange(2, late.pos, late.index, 1.0))]
    )
    alone = predicted_effects(run, graph, [(changes[1],)])[0]
    assert torch.allclose(first - kept, alone, atol=1e-12)


def test_two_features_in_a_row_by_hand():
    """x -> y -> logit, and x -> logit: ablating x takes 2 + 3 * 4 / 8, with y at 8 of which 4."""
    nodes = (Node("feature", 0, 0, 7), Node("feature", 1, 0, 2), Node("logit", 2, 0, 1))
    edges = torch.zeros(3, 3)
    edges[1, 0], edges[2, 0], edges[2, 1] = 4.0, 2.0, 3.0
    graph = Graph(
        tokens=(0,),
        words=("a",),
        logit_words=("b",),
        nodes=nodes,
        values=torch.tensor([5.0, 8.0, 5.0]),
        activations=torch.tensor([5.0, 8.0, 0.0]),
        edges=edges,
        biases=torch.tensor([5.0, 4.0, 0.0]),
        probabilities=torch.tensor([0, 0, 1.0]),
        n_layers=2,
    )
    weights = node_weights(graph)
    assert weights[1, 0] == 0.8
    assert weights[2, 1] == 0.375
    whole = torch.linalg.inv(torch.eye(3) - weights)
    assert (-5 * whole[2, 0]).item() == pytest.approx(-3.5)


def test_what_the_graph_does_not_hold_is_refused(known):
    run, graph = known
    small = trace(run.backend, graph.tokens, run.transcoder, logits=EVERY, max_features=4)
    gone = next(n for n in graph.nodes if n.kind == "feature" and n not in small.places)
    change = FeatureChange(gone.layer, gone.pos, gone.index)
    with pytest.raises(ValueError, match="not in the graph"):
        predicted_effects(run, small, [(change,)])
    with pytest.raises(ValueError, match="different prompts"):
        predicted_effects(run, replace(graph, tokens=(1, 2)), [])
    layer, pos, feature = (run.activations == 0).nonzero()[0].tolist()
    assert not predicted_effects(run, graph, [(FeatureChange(layer, pos, feature),)]).any()
