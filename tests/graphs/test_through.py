"""What passes a head is the sum of the path products through it."""

import pytest
import torch

from circuitkeep.graphs import Node
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.through import edge_heads, through_heads
from circuitkeep.graphs.trace import trace

EXACT = 1e-9


def setting(oracles, family, seed=0):
    """A held pass, the frozen one, the exact transcoder and the graph, of a random prompt."""
    if family == "split":
        model = oracles.split_model(seed)
        transcoder = oracles.split_transcoder(model)
    else:
        model = oracles.linear(family, seed, layers=3)
        transcoder = oracles.exact_transcoder(model)
    held = oracles.Held(model, oracles.prompt(seed, length=4))
    frozen = freeze(held.backend, held.tokens)
    graph = trace(held.backend, held.tokens.tolist(), transcoder, logits=[3])
    return held, frozen, transcoder, graph


def writes_of(held, transcoder, node):
    """What a node writes: vectors, and the first layer whose heads read each."""
    if node.kind == "embedding":
        return [(held.embedding[node.pos], 0)]
    strength = transcoder.encode(held.mlp_in)[node.layer, node.pos, node.index]
    decoders = transcoder.W_dec[node.layer][node.index]
    return [(strength * row, node.layer + 1 + i) for i, row in enumerate(decoders)]


def read_by(held, transcoder, node):
    """What a node reads, and how many layers of heads come before it."""
    if node.kind == "logit":
        return held.logit_direction(node.index), len(held.heads)
    parallel = hasattr(held.model, "gpt_neox")
    return transcoder.W_enc[node.layer, node.index], node.layer + (not parallel)


@pytest.mark.parametrize("family", ["gpt2", "neox", "split"])
def test_paths_through_heads_by_brute_force(oracles, family):
    held, frozen, transcoder, graph = setting(oracles, family)
    features = [node for node in graph.nodes if node.kind == "feature"]
    logit = graph.nodes[-1]
    edges = [
        (graph.nodes[1], logit),
        (features[0], logit),
        (graph.nodes[2], next(n for n in features if n.layer == 1 and n.pos == 3)),
        (next(n for n in features if n.pos == 1), [n for n in features if n.layer == 2][-1]),
        (next(n for n in features if n.pos == 3), [n for n in features if n.layer == 2][-1]),
    ]
    for (source, target), found in zip(
        edges, edge_heads(frozen, transcoder, graph, edges), strict=True
    ):
        direction, stop = read_by(held, transcoder, target)
        expected, direct = torch.zeros(3, 4, dtype=torch.float64), 0.0
        total = 0.0
        for vector, first in writes_of(held, transcoder, source):
            # What is written once the target's layer is reached comes too late.
            if first > target.layer and target.kind == "feature":
                continue
            for path, arrived in held.paths(vector, source.pos, first, stop, target.pos):
                value = (arrived @ direction).item()
                total += value
                direct += 0 if path else value
                for head, _, _ in path:
                    expected[head.layer, head.index] += value
        assert found.weight == pytest.approx(total, abs=EXACT)
        assert found.direct == pytest.approx(direct, abs=EXACT)
        torch.testing.assert_close(found.heads, expected, atol=EXACT, rtol=0)
        edge = graph.edges[graph.places[target], graph.places[source]].item()
        assert found.weight == pytest.approx(edge, abs=EXACT)
        assert abs(total) > 1e-6


def test_every_edge_of_the_graph_is_the_sum_of_its_ways(oracles):
    _, frozen, transcoder, graph = setting(oracles, "split", seed=1)
    edges = [
        (graph.nodes[int(source)], graph.nodes[int(target)])
        for target, source in graph.edges.nonzero().tolist()
    ]
    assert len(edges) > 1000
    some = edges[::17]
    for (source, target), found in zip(
        some, edge_heads(frozen, transcoder, graph, some), strict=True
    ):
        weight = graph.edges[graph.places[target], graph.places[source]].item()
        assert found.weight == pytest.approx(weight, abs=EXACT)
        if source.pos != target.pos:
            assert found.direct == 0
        assert [entry[2] for entry in found.strongest(2)] == sorted(
            (entry[2] for entry in found.strongest(2)), key=abs, reverse=True
        )


def test_features_left_out_count_as_error(oracles):
    held, frozen, transcoder, _ = setting(oracles, "split")
    graph = trace(held.backend, held.tokens.tolist(), transcoder, logits=[3], max_features=9)
    logit = graph.nodes[-1]
    errors = [node for node in graph.nodes if node.kind == "error"]
    found = edge_heads(frozen, transcoder, graph, [(node, logit) for node in errors])
    row = graph.edges[-1]
    for node, way in zip(errors, found, strict=True):
        assert way.weight == pytest.approx(row[graph.places[node]].item(), abs=EXACT)
    assert max(abs(way.weight) for way in found) > 0.01


def test_without_a_transcoder_errors_are_whole_mlps(oracles):
    held = oracles.Held(oracles.linear("gpt2", 0), oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    graph = trace(held.backend, held.tokens.tolist(), logits=[3])
    source = Node("error", 0, 2, 0)
    found = through_heads(frozen, None, graph, source, graph.nodes[-1])
    assert found.weight == pytest.approx(graph.edges[-1, graph.places[source]].item(), abs=EXACT)
    assert found.heads[0].eq(0).all()
    assert found.heads[1].ne(0).all()


def test_what_is_no_edge_is_refused(oracles):
    held, frozen, transcoder, graph = setting(oracles, "gpt2")
    logit, embedding = graph.nodes[-1], graph.nodes[0]
    with pytest.raises(ValueError, match="reads nothing"):
        through_heads(frozen, transcoder, graph, embedding, embedding)
    with pytest.raises(ValueError, match="only read"):
        through_heads(frozen, transcoder, graph, logit, logit)
    with pytest.raises(ValueError, match="none of the graph's"):
        through_heads(frozen, transcoder, graph, Node("feature", 0, 0, 99), logit)
    other = freeze(held.backend, held.tokens[:3])
    with pytest.raises(ValueError, match="another prompt"):
        through_heads(other, transcoder, graph, embedding, logit)
