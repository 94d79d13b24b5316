"""What is told of heads is what `through`, `heads` and `scores` find, and the strongest of it."""

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head
from circuitkeep.graphs.extras import LEAST, REASONS, edges_of_heads, heads_of_edges, reasoned
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.heads import edge_values
from circuitkeep.graphs.influence import input_shares, prune
from circuitkeep.graphs.scores import attribute_score
from circuitkeep.graphs.through import through_heads
from circuitkeep.graphs.trace import trace
from circuitkeep.graphs.writes import logit_readout
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig

TOKENS = [32, 5, 7, 5, 9, 5]


@pytest.fixture(scope="module")
def traced(tiny_model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transcoder = CrossLayerTranscoder(TranscoderConfig(2, 32, 8))
        for decoders in transcoder.W_dec:
            torch.nn.init.normal_(decoders, std=0.1)
    backend = attach(tiny_model("llama"))
    graph = trace(backend, TOKENS, transcoder)
    return backend, freeze(backend, torch.tensor(TOKENS)), transcoder, graph


def test_edges_are_told_with_the_heads_they_pass(traced):
    _, frozen, transcoder, graph = traced
    pruned = prune(graph)
    told = []
    most = 20
    found = heads_of_edges(
        frozen, transcoder, graph, pruned, most, progress=lambda *done: told.append(done)
    )
    assert len(found) == most
    assert told == [(8, 20), (16, 20), (20, 20)]
    weights = input_shares(graph.edges) * (pruned.influence + graph.probabilities)[:, None]
    places = [(graph.places[target], graph.places[source]) for source, target in found]
    assert all(pruned.edges[place] for place in places)
    others = weights * pruned.edges
    least = min(others[place].item() for place in places)
    for place in places:
        others[place] = 0
    assert others.max() <= least  # none that is left out is stronger
    for (source, target), passed in found.items():
        through = through_heads(frozen, transcoder, graph, source, target)
        wanted = {
            str(Head(layer, index)): through.heads[layer, index].item()
            for layer in range(2)
            for index in range(4)
        }
        wanted["no head"] = through.direct
        small = LEAST * abs(through.weight)
        assert dict(passed) == {name: pytest.approx(wanted[name]) for name, _ in passed}
        heads = {n: v for n, v in wanted.items() if abs(v) >= small and v and n != "no head"}
        names = sorted(heads, key=lambda name: -abs(heads[name]))[:3]
        if abs(through.direct) >= small and through.direct:
            names.append("no head")
        assert [name for name, _ in passed] == names


def test_outputs_are_told_what_heads_bring_them(traced):
    _, frozen, _, graph = traced
    found = edges_of_heads(frozen, graph, 5)
    assert list(found) == [node for node in graph.nodes if node.kind == "logit"]
    for node, edges in found.items():
        values = edge_values(frozen, logit_readout(frozen, node.index))
        sizes = values.abs().flatten().sort(descending=True).values
        assert [abs(edge.value) for edge in edges] == pytest.approx(sizes[:5].tolist())
        for edge in edges:
            place = (edge.head.layer, edge.head.index, edge.query, edge.key)
            assert edge.value == pytest.approx(values[place].item())
            assert edge.attention == pytest.approx(frozen.patterns[place].item())


def test_heads_have_reasons_to_attend(traced):
    backend, frozen, transcoder, graph = traced
    edges = edges_of_heads(frozen, graph, 4)
    told = []
    found = reasoned(
        backend, frozen, transcoder, edges, 2, lambda done, total: told.append((done, total))
    )
    assert told[-1][0] == told[-1][1] == len(told)
    known = 0
    for node, own in found.items():
        assert [edge._replace(reason=None) for edge in own] == edges[node]
        for edge in own[:2]:
            if edge.query == 0:
                assert edge.reason is None  # there is no other key
                continue
            wanted = attribute_score(
                backend, frozen, edge.head, edge.query, edge.key, transcoder, contrast=True
            )
            assert edge.reason.score == pytest.approx(wanted.score)
            values = [value for _, value in edge.reason.query]
            assert values == pytest.approx([*wanted.by_query.values()][:REASONS])
            names = {name for name, _ in edge.reason.key}
            assert len(names) == min(REASONS, len(wanted.by_key))
            known += 1
    assert known
