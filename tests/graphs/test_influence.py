"""What matters in a graph, against sums over all paths."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.graphs import Graph, Node
from circuitkeep.graphs.influence import graph_scores, influence, prune


def chain(weights, nodes, likely):
    """A graph whose edges are given as (source, target): weight."""
    size = len(nodes)
    edges, probabilities = torch.zeros(size, size), torch.zeros(size)
    for (source, target), weight in weights.items():
        edges[target, source] = weight
    probabilities[-len(likely) :] = torch.tensor(likely)
    zeros = torch.zeros(size)
    words = tuple("a" for node in nodes if node.kind == "embedding")
    said = tuple("b" for _ in likely)
    tokens = (0,) * len(words)
    return Graph(tokens, words, said, nodes, zeros, zeros, edges, zeros, probabilities, 2)


NODES = (
    Node("embedding", -1, 0, 0),
    Node("feature", 0, 0, 3),
    Node("error", 0, 0, 0),
    Node("feature", 1, 0, 4),
    Node("error", 1, 0, 0),
    Node("logit", 2, 0, 7),
    Node("logit", 2, 0, 8),
)
# embedding -> two features -> logits; the errors; the second feature inhibits the first logit
WEIGHTS = {
    (0, 1): 2.0,
    (0, 3): -1.0,
    (1, 3): 2.0,
    (2, 3): 1.0,
    (1, 5): 3.0,
    (3, 5): -1.0,
    (4, 5): 1.0,
    (0, 5): 1.0,
    (3, 6): 5.0,
}


@pytest.fixture
def graph():
    return chain(WEIGHTS, NODES, [0.6, 0.3])


def by_paths(graph):
    """The sum over every path to a logit of the product of its edges' shares."""
    shares = graph.edges.abs() / graph.edges.abs().sum(1, keepdim=True).clamp(min=1e-10)
    total = torch.zeros(len(graph))
    for length in range(2, len(graph) + 1):
        for path in itertools.combinations(range(len(graph)), length):
            product = graph.probabilities[path[-1]].clone()
            for source, target in itertools.pairwise(path):
                product *= shares[target, source]
            total[path[0]] += product
    return total


def test_influence_is_the_sum_over_paths(graph):
    assert_close(influence(graph), by_paths(graph))


def test_influence_by_hand(graph):
    # The last feature: a sixth of the first logit's inputs, and all of the second's.
    assert influence(graph)[3].item() == pytest.approx(0.6 / 6 + 0.3)
    assert influence(graph)[1].item() == pytest.approx(0.6 / 2 + 0.4 * 2 / 4)
    assert influence(graph)[5:].tolist() == [0, 0]


def test_scores_by_hand(graph):
    scores = graph_scores(graph)
    begins = influence(graph)[0].item()
    lost = influence(graph)[[2, 4]].sum().item()
    assert scores.replacement == pytest.approx(begins / (begins + lost))
    # Of the last feature's inputs a quarter is error, of the first logit's a sixth.
    weights = influence(graph) + graph.probabilities
    explained = torch.tensor([1, 1, 1, 3 / 4, 1, 5 / 6, 1])
    assert scores.completeness == pytest.approx(float((explained * weights).sum() / weights.sum()))


def test_pruning_keeps_what_carries_most(graph):
    pruned = prune(graph, nodes=0.8, edges=1.0)
    scores = influence(graph)
    assert pruned.nodes.tolist() == [True, True, False, True, False, True, True]
    lost = scores[~pruned.nodes].sum() / scores.sum()
    assert lost <= 0.2
    among = pruned.nodes[:, None] & pruned.nodes
    assert torch.equal(pruned.edges, (graph.edges != 0) & among)
    ordered = scores.argsort(descending=True)
    assert (pruned.cumulative[ordered].diff() >= 0).all()
    assert pruned.cumulative[ordered[-1]].item() == pytest.approx(1)


def test_the_fewest_edges_that_hold_the_share(graph):
    whole = prune(graph, nodes=1.0, edges=1.0)
    assert int(whole.edges.sum()) == len(WEIGHTS)
    sizes = [int(prune(graph, 1.0, share).edges.sum()) for share in (0.3, 0.6, 0.9, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_what_leads_nowhere_goes():
    # The first feature feeds the second alone, whose edge to the logit is too weak to stay.
    weights = {(0, 1): 1.0, (1, 3): 1.0, (3, 5): 0.01, (0, 5): 1.0, (0, 6): 1.0}
    pruned = prune(chain(weights, NODES, [0.6, 0.3]), nodes=1.0, edges=0.95)
    assert pruned.nodes.tolist() == [True, False, False, False, False, True, True]
    assert pruned.edges.nonzero().tolist() == [[5, 0], [6, 0]]


def test_a_graph_without_edges():
    empty = chain({}, NODES, [0.6, 0.3])
    assert not influence(empty).any()
    pruned = prune(empty)
    assert not pruned.edges.any()
    assert pruned.nodes.tolist() == [True, False, False, False, False, True, True]


@pytest.mark.parametrize("shares", [{"nodes": 0.0}, {"edges": 1.5}, {"nodes": -1.0}])
def test_shares_that_are_none(graph, shares):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        prune(graph, **shares)


def test_saved_and_read_back(graph, tmp_path):
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    again = Graph.load(path)
    assert again.nodes == graph.nodes
    assert (again.words, again.logit_words, again.n_layers) == (graph.words, graph.logit_words, 2)
    assert torch.equal(again.edges, graph.edges)
    assert torch.equal(again.probabilities, graph.probabilities)
    path.write_text("no graph")
    with pytest.raises(ValueError, match="cannot read the graph"):
        Graph.load(path)
