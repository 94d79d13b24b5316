"""Which interventions a graph is tested by: those it calls strong, and random ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Head
from circuitkeep.graphs.changes import (
    CleanRun,
    FeatureChange,
    HeadChange,
    Intervention,
    PathChange,
)
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.influence import influence

STRONG, RANDOM = "strongest features ablated", "random features ablated"
DOUBLED = "strongest features doubled"
HEADS, EDGES, PATHS = "heads ablated", "edges of heads cut", "paths through heads cut"


@torch.no_grad()
def chosen_interventions(
    run: CleanRun, graph: Graph, features: int = 6, heads: int = 4, seed: int = 0
) -> dict[str, list[Intervention]]:
    """Interventions of six kinds, strongest first.

    Features are strong by their influence on the graph's logits; random ones are other features
    of the graph, as many in each layer as there are strong ones (fewer where it has no more).
    Heads, their edges from the last position and the paths of a feature through a head to it are
    strong by the size of what they write directly to the likeliest logit.

    Args:
        run: Of the graph's prompt.
        graph: Its features are chosen from.
        features: How many strong features (and as many random ones).
        heads: How many heads, edges and paths each.
        seed: Of the random features.

    Returns:
        By kind; a kind of which there are none is left out.
    """
    nodes = graph.nodes
    share = influence(graph)
    order = [p for p in share.argsort(descending=True).tolist() if nodes[p].kind == "feature"]
    strong = [nodes[place] for place in order[:features]]
    others = [nodes[place] for place in order[features:]]
    random = _matched(strong, others, seed)
    found = {
        STRONG: [(_feature(node, 0.0),) for node in strong],
        RANDOM: [(_feature(node, 0.0),) for node in random],
        DOUBLED: [(_feature(node, 2.0),) for node in strong],
        HEADS: _heads(run, graph, heads),
        EDGES: _edges(run, graph, heads),
        PATHS: _paths(run, graph, heads),
    }
    return {kind: rows for kind, rows in found.items() if rows}


def _matched(strong: Sequence[Node], others: Sequence[Node], seed: int) -> list[Node]:
    """Other features, as many in each layer."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Node] = []
    for layer in sorted({node.layer for node in strong}):
        pool = [node for node in others if node.layer == layer]
        order = torch.randperm(len(pool), generator=generator).tolist()
        wanted = sum(node.layer == layer for node in strong)
        found += [pool[place] for place in order[:wanted]]
    return found


def _feature(node: Node, factor: float) -> FeatureChange:
    return FeatureChange(node.layer, node.pos, node.index, factor)


def _edge_writes(run: CleanRun, graph: Graph) -> Float[Tensor, "layer head key"]:
    """What the last position reads through every head, to the likeliest logit."""
    frozen = run.frozen
    read = torch.einsum("lhvd,d->lhv", frozen.W_O, _direction(run, graph))
    read = read * frozen.scales_after[:, -1, None, None]
    return frozen.patterns[:, :, -1] * torch.einsum("lhkv,lhv->lhk", run.values, read)


def _direction(run: CleanRun, graph: Graph) -> Float[Tensor, " d_model"]:
    likeliest = graph.nodes[int(graph.probabilities.argmax())]
    return run.frozen.readout(likeliest.index)


def _heads(run: CleanRun, graph: Graph, count: int) -> list[Intervention]:
    last = len(graph.tokens) - 1
    written = _edge_writes(run, graph).sum(-1)
    return [(HeadChange(Head(*at), last),) for at in _largest(written, count)]


def _edges(run: CleanRun, graph: Graph, count: int) -> list[Intervention]:
    last = len(graph.tokens) - 1
    written = _edge_writes(run, graph)
    return [
        (HeadChange(Head(layer, index), last, key),)
        for layer, index, key in _largest(written, count)
    ]


def _paths(run: CleanRun, graph: Graph, count: int) -> list[Intervention]:
    """Paths of the graph's features through one head of a later layer to the last position."""
    frozen, nodes = run.frozen, [node for node in graph.nodes if node.kind == "feature"]
    if run.transcoder is None or not nodes:
        return []
    direction = _direction(run, graph)
    decoders = run.transcoder.W_dec
    direct = torch.zeros(len(nodes), frozen.n_layers, frozen.n_heads)
    for place, node in enumerate(nodes):
        written = decoders[node.layer][node.index].cumsum(0)
        written = written * run.activations[node.layer, node.pos, node.index]
        for layer in range(node.layer + 1, frozen.n_layers):
            below = written[min(layer - node.layer, len(written)) - 1].to(frozen.W_V)
            values = (below * frozen.scales[layer, node.pos]) @ frozen.W_V[layer]
            writes = torch.einsum("hv,hvd,d->h", values, frozen.W_O[layer], direction)
            direct[place, layer] = frozen.patterns[layer, :, -1, node.pos] * writes
    return [
        (
            PathChange(
                nodes[place].layer,
                nodes[place].pos,
                nodes[place].index,
                Head(layer, index),
                len(graph.tokens) - 1,
            ),
        )
        for place, layer, index in _largest(direct, count)
    ]


def _largest(sizes: Tensor, count: int) -> list[tuple[int, ...]]:
    """Where the largest entries are, by size without sign; zeros are none."""
    flat = sizes.abs().flatten()
    order = flat.argsort(descending=True)[:count]
    order = order[flat[order] > 0]
    places = torch.unravel_index(order, sizes.shape)
    return [tuple(place) for place in torch.stack(places, 1).tolist()]
