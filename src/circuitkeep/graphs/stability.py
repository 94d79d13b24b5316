"""How much two graphs have in common: of nodes, of edges, of the order of influences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from circuitkeep.graphs.graph import Graph, Kind, Node
from circuitkeep.graphs.influence import influence, input_shares

Align = Literal["positions", "counts"]
"""``positions``: a node is the same in both graphs if its position is, too. ``counts``: positions
do not count, and the influences of a feature at several are added up."""

Key = tuple[Any, ...]
"""Kind, layer and number of a node, and its position where that counts."""

FEATURES: tuple[Kind, ...] = ("feature",)


@dataclass(frozen=True)
class Overlap:
    r"""What two graphs share, 0 for nothing, 1 for the same.

    Attributes:
        nodes: :math:`\sum_n \min(a_n, b_n) / \sum_n \max(a_n, b_n)` of the influences, which sum to
            1 in each graph over the kinds of nodes that are compared.
        edges: The same of the edges; see `Shares`.
        rank: Spearman's correlation of the influences, over the nodes that both have; NaN for
            fewer than 2, or if one is constant.
        shared: How many nodes both have.
        either: How many either has.
    """

    nodes: float
    edges: float
    rank: float
    shared: int
    either: int


@dataclass(frozen=True, eq=False)
class Shares:
    """The influence of a graph's nodes and edges, or the mean over several graphs.

    Attributes:
        keys: What makes a node the same in another graph; all logits are one node.
        nodes: Influences; they sum to 1, or are empty.
        edges: An edge's influence is its share of what its target receives, times the target's;
            they sum to 1.
    """

    keys: tuple[Key, ...]
    nodes: Float[Tensor, " key"]
    edges: Float[Tensor, "target_key source_key"]


def overlap(
    a: Graph, b: Graph, align: Align = "positions", kinds: Sequence[Kind] = FEATURES
) -> Overlap:
    """Compare two graphs of the same transcoder (or of matched ones, see `relabelled`).

    Args:
        a: One graph.
        b: The other.
        align: See `Align`.
        kinds: Of the nodes that are compared; see `shares`.
    """
    return compare(shares(a, align, kinds), shares(b, align, kinds))


def shares(graph: Graph, align: Align, kinds: Sequence[Kind] = FEATURES) -> Shares:
    """What is compared of a graph.

    Edges count if their source is of the chosen kinds and their target too, or is a logit. Logits
    are one node: which tokens they are is another question.

    Args:
        graph: The whole graph.
        align: See `Align`.
        kinds: Embeddings and errors are at every position of every graph, so that they make
            graphs alike that share no feature.
    """
    influences = influence(graph)
    chosen = torch.tensor([node.kind in kinds or node.kind == "logit" for node in graph.nodes])
    places = chosen.nonzero()[:, 0]
    own = [_key(graph.nodes[place], align) for place in places.tolist()]
    keys = tuple(dict.fromkeys(own))
    number = {key: at for at, key in enumerate(keys)}
    which = torch.tensor([number[key] for key in own])
    # Influence starts at the logits, with their probabilities.
    received = influences + graph.probabilities
    edges = (input_shares(graph.edges) * received[:, None])[places][:, places]
    edges = _added_up(_added_up(edges, which, len(keys)).T, which, len(keys)).T
    nodes = _added_up(influences[places], which, len(keys))
    return Shares(keys, _to_one(nodes), _to_one(edges))


def mean_shares(many: Sequence[Shares]) -> Shares:
    """The mean over graphs; what one of them lacks is 0 there.

    Raises:
        ValueError: If there are none.
    """
    if not many:
        raise ValueError("the mean of no graphs")
    keys = tuple(dict.fromkeys(key for one in many for key in one.keys))
    number = {key: at for at, key in enumerate(keys)}
    nodes = many[0].nodes.new_zeros(len(keys))
    edges = nodes.new_zeros(len(keys), len(keys))
    for one in many:
        which = torch.tensor([number[key] for key in one.keys])
        nodes[which] += one.nodes / len(many)
        edges[which[:, None], which] += one.edges / len(many)
    return Shares(keys, nodes, edges)


def compare(a: Shares, b: Shares) -> Overlap:
    """See `overlap`; for what has been taken from graphs once and is compared often."""
    numbers = [{key: at for at, key in enumerate(one.keys)} for one in (a, b)]
    both = [key for key in a.keys if key in numbers[1]]
    in_a, in_b = (torch.tensor([n[key] for key in both], dtype=torch.long) for n in numbers)
    in_both = [one.edges[at][:, at] for one, at in ((a, in_a), (b, in_b))]
    edges = _common(in_both[0], in_both[1], a.edges, b.edges)
    of_a, of_b = a.nodes[in_a], b.nodes[in_b]
    nodes = _common(of_a, of_b, a.nodes, b.nodes)
    shared = (of_a > 0) & (of_b > 0)
    count = int(shared.sum())
    either = int((a.nodes > 0).sum() + (b.nodes > 0).sum()) - count
    return Overlap(nodes, edges, _rank(of_a[shared].tolist(), of_b[shared].tolist()), count, either)


def relabelled(of: Shares, labels: Mapping[tuple[int, int], int]) -> Shares:
    """The same with other numbers for the features.

    Args:
        of: Graphs of one transcoder.
        labels: The number in another transcoder by layer and number, one to one in each layer.
            Features without one get negative numbers, which no feature has.
    """

    def other(key: Key) -> Key:
        kind, layer, index, *pos = key
        if kind != "feature":
            return key
        return (kind, layer, labels.get((layer, index), -1 - index), *pos)

    return replace(of, keys=tuple(map(other, of.keys)))


def shuffled_labels(a: Shares, b: Shares, seed: int = 0) -> Shares:
    """`b` with the numbers of its features exchanged at random, within each layer.

    They are drawn from all features that either has in the layer, so that the null does not get
    easier with features that are in neither.
    """
    generator = torch.Generator().manual_seed(seed)
    features = sorted({key[1:3] for one in (a, b) for key in one.keys if key[0] == "feature"})
    labels: dict[tuple[int, int], int] = {}
    for layer in sorted({layer for layer, _ in features}):
        pool = [index for at, index in features if at == layer]
        order = torch.randperm(len(pool), generator=generator).tolist()
        labels |= {(layer, old): pool[new] for old, new in zip(pool, order, strict=True)}
    return relabelled(b, labels)


def _key(node: Node, align: Align) -> Key:
    if node.kind == "logit":
        return ("logit", node.layer, 0)
    at = (node.pos,) if align == "positions" else ()
    return (node.kind, node.layer, node.index, *at)


def _added_up(
    values: Float[Tensor, "item *rest"], which: Int[Tensor, " item"], count: int
) -> Float[Tensor, "key *rest"]:
    return values.new_zeros(count, *values.shape[1:]).index_add(0, which, values)


def _to_one(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    whole = values.sum()
    return values / whole if whole > 0 else values


def _common(in_a: Tensor, in_b: Tensor, a: Tensor, b: Tensor) -> float:
    """Sum of the smaller ones over sum of the larger ones; what one lacks is 0 there."""
    least = torch.minimum(in_a, in_b).sum().item()
    most = a.sum().item() + b.sum().item() - least
    return least / most if most > 0 else float("nan")


def _rank(a: Sequence[float], b: Sequence[float]) -> float:
    if len(set(a)) < 2 or len(set(b)) < 2:
        return float("nan")
    found: Any = spearmanr(a, b)
    return float(found.statistic)
