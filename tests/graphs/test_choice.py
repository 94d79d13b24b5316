"""Which interventions are chosen, on a model whose paths are known."""

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.graphs.changes import clean_run
from circuitkeep.graphs.choice import (
    DOUBLED,
    EDGES,
    HEADS,
    PATHS,
    RANDOM,
    STRONG,
    chosen_interventions,
)
from circuitkeep.graphs.influence import influence
from circuitkeep.graphs.response import predicted_effects
from circuitkeep.graphs.trace import trace

from .oracles import attention_only, exact_transcoder, linear, prompt


@pytest.fixture(scope="module")
def known():
    model = linear("gpt2", seed=0, layers=3)
    backend, transcoder, tokens = attach(model), exact_transcoder(model), prompt(1)
    graph = trace(backend, tokens.tolist(), transcoder)
    return clean_run(backend, transcoder, tokens), graph


def test_strong_features_have_the_most_influence_and_random_ones_their_layers(known):
    run, graph = known
    found = chosen_interventions(run, graph, features=5, heads=2, seed=1)
    assert list(found) == [STRONG, RANDOM, DOUBLED, HEADS, EDGES, PATHS]
    strong, random, doubled = ([row[0] for row in found[k]] for k in (STRONG, RANDOM, DOUBLED))
    places = [graph.places[node] for node in graph.nodes if node.kind == "feature"]
    best = sorted(places, key=lambda place: -influence(graph)[place])[:5]
    assert [(c.layer, c.pos, c.feature) for c in strong] == [
        (graph.nodes[p].layer, graph.nodes[p].pos, graph.nodes[p].index) for p in best
    ]
    assert {c.factor for c in strong} == {0.0}
    assert {c.factor for c in doubled} == {2.0}
    assert sorted(c.layer for c in random) == sorted(c.layer for c in strong)
    assert not set(random) & set(strong)
    assert all(run.activations[c.layer, c.pos, c.feature] > 0 for c in random)
    again = chosen_interventions(run, graph, features=5, heads=2, seed=1)
    assert again == found
    assert chosen_interventions(run, graph, features=5, seed=2)[RANDOM] != found[RANDOM]


@pytest.mark.parametrize("kind", [HEADS, EDGES, PATHS])
def test_heads_edges_and_paths_are_those_that_write_most_to_the_likeliest_logit(known, kind):
    """In the last layer, where what is written directly is all there is."""
    run, graph = known
    rows = [r for r in chosen_interventions(run, graph, heads=1000)[kind] if r[0].head.layer == 2]
    assert len(rows) >= 4
    direct = predicted_effects(run, graph, rows)[:, 0]
    late = torch.tensor([row[0].query == len(graph.tokens) - 1 for row in rows])
    assert late.all()
    if kind != HEADS:
        # The last layer's features at the last position read what heads write as well.
        direct = direct.abs()
        assert direct[: len(direct) // 4].mean() > direct[-len(direct) // 4 :].mean()


def test_without_a_transcoder_heads_alone_are_chosen():
    model = attention_only("gpt2", seed=0)
    backend, tokens = attach(model), prompt(1)
    run, graph = clean_run(backend, None, tokens), trace(backend, tokens.tolist())
    found = chosen_interventions(run, graph, heads=3)
    assert {kind: len(rows) for kind, rows in found.items()} == {HEADS: 3, EDGES: 3}
    # One layer before the logits: the order is that of the predicted effects.
    last = [row for row in chosen_interventions(run, graph, heads=99)[EDGES] if row[0].head.layer]
    sizes = predicted_effects(run, graph, last)[:, 0].abs()
    assert torch.equal(sizes, sizes.sort(descending=True).values)
