"""What two graphs have in common, on graphs made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from circuitkeep.graphs import Graph, Node
from circuitkeep.graphs.stability import (
    compare,
    mean_shares,
    overlap,
    relabelled,
    shares,
    shuffled_labels,
)

from .conftest import made_graph


def chain(first, second, weights=(3.0, 1.0), pos=0, logit=5):
    """Two features of layer 0 that write to one logit, `weights` of each."""
    nodes = (
        Node("feature", 0, pos, first),
        Node("feature", 0, pos, second),
        Node("logit", 1, 2, logit),
    )
    edges = torch.zeros(3, 3)
    edges[2, :2] = torch.tensor(weights)
    return Graph(
        tokens=(1, 2, 3),
        words=("a", "b", "c"),
        logit_words=("d",),
        nodes=nodes,
        values=torch.tensor([1.0, 1, 4]),
        activations=torch.tensor([1.0, 1, 0]),
        edges=edges,
        biases=torch.zeros(3),
        probabilities=torch.tensor([0, 0, 1.0]),
        n_layers=1,
    )


def test_a_graph_overlaps_with_itself():
    graph = made_graph()
    for align in ("positions", "counts"):
        found = overlap(graph, graph, align)
        assert (found.nodes, found.edges, found.rank) == pytest.approx((1, 1, 1))
        assert found.shared == found.either > 0


def test_shares_by_hand():
    """3/4 and 1/4 against 1/2 and 1/2: (1/2 + 1/4) / (3/4 + 1/2)."""
    found = overlap(chain(0, 1), chain(0, 1, (2.0, -2.0)))
    assert found.nodes == pytest.approx(0.6)
    assert found.edges == pytest.approx(0.6)
    assert math.isnan(found.rank)
    one = overlap(chain(0, 1), chain(0, 2))
    assert one.nodes == pytest.approx(0.75 / 1.25)
    assert (one.shared, one.either) == (1, 3)
    assert math.isnan(one.rank)
    none = overlap(chain(0, 1), chain(2, 3))
    assert (none.nodes, none.edges, none.shared) == (0, 0, 0)


def test_positions_count_or_do_not():
    here, there = chain(0, 1), chain(0, 1, pos=1)
    assert overlap(here, there).nodes == 0
    assert overlap(here, there, "counts").nodes == pytest.approx(1)
    assert overlap(here, there, "counts").edges == pytest.approx(1)


def test_which_token_is_said_is_another_question():
    assert overlap(chain(0, 1), chain(0, 1, logit=9)).edges == pytest.approx(1)


def test_kinds_that_every_graph_has_make_graphs_alike():
    a, b = made_graph(seed=0), made_graph(seed=1)
    features = shares(a, "positions"), relabelled(shares(b, "positions"), {})
    assert compare(*features).nodes == 0
    kinds = ("feature", "embedding", "error")
    everything = shares(a, "positions", kinds), relabelled(shares(b, "positions", kinds), {})
    assert compare(*everything).nodes > 0.2


@pytest.mark.parametrize("align", ["positions", "counts"])
def test_matched_features_are_the_same_under_other_numbers(align):
    graph = made_graph()
    a = shares(graph, align)
    moved = {(n.layer, n.index): n.index + 100 for n in graph.nodes if n.kind == "feature"}
    b = relabelled(a, moved)
    assert compare(a, b).nodes == 0
    back = {(layer, new): old for (layer, old), new in moved.items()}
    assert compare(a, relabelled(b, back)).nodes == pytest.approx(1)
    some = dict(list(back.items())[::2])
    assert 0 < compare(a, relabelled(b, some)).nodes < 1
    # A number without a partner is no number of the other transcoder.
    assert compare(a, relabelled(a, {})).shared == 0


@pytest.mark.parametrize("align", ["positions", "counts"])
def test_shuffled_labels_keep_the_graph_and_lose_the_overlap(align):
    a = shares(made_graph(features=6), align)
    found = [shuffled_labels(a, a, seed) for seed in range(10)]
    for one in found:
        assert torch.equal(one.edges, a.edges)
        for layer in range(2):
            labels = [
                sorted({key[2] for key in s.keys if key[:2] == ("feature", layer)})
                for s in (one, a)
            ]
            assert labels[0] == labels[1]
    mean = sum(compare(a, one).nodes for one in found) / 10
    assert mean < (0.4 if align == "positions" else 0.7)
    assert found[0].keys != found[1].keys
    assert shuffled_labels(a, a, 3).keys == found[3].keys


def test_a_graph_without_features_overlaps_with_nothing():
    bare = made_graph(features=0)
    found = overlap(bare, bare)
    assert math.isnan(found.nodes)
    assert found.either == 0
    assert overlap(bare, bare, kinds=("embedding",)).nodes == pytest.approx(1)


def test_the_order_of_influences():
    a = made_graph(features=6, seed=0)
    generator = torch.Generator().manual_seed(0)
    noisy = replace(a, edges=a.edges * (1 + 0.2 * torch.randn(a.edges.shape, generator=generator)))
    other = replace(made_graph(features=6, seed=1), nodes=a.nodes)
    assert overlap(a, noisy).rank > 0.8 > overlap(a, other).rank


def test_means_over_graphs():
    """3/4, 1/4, 0 and 1/4, 0, 3/4: 1/2, 1/8, 3/8."""
    one, other = (shares(g, "positions") for g in (chain(0, 1), chain(0, 2, (1.0, 3.0))))
    mean = mean_shares([one, other])
    assert mean.nodes.sum() == pytest.approx(1)
    assert mean.edges.sum() == pytest.approx(1)
    assert sorted(mean.nodes.tolist()) == pytest.approx([0, 0.125, 0.375, 0.5])
    assert compare(mean, mean_shares([other, one])).edges == pytest.approx(1)
    assert compare(mean, one).nodes == pytest.approx((0.5 + 0.125) / (0.75 + 0.25 + 0.375))
    with pytest.raises(ValueError, match="no graphs"):
        mean_shares([])
