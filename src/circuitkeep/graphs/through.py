"""Which heads the edges of an attribution graph pass through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.writes import (
    Readout,
    Writes,
    gradients,
    node_readout,
    node_writer,
    stream_writes,
)
from circuitkeep.transcoders import CrossLayerTranscoder


@dataclass(frozen=True, eq=False)
class Through:
    """How one edge gets from its source to its target.

    Attributes:
        weight: The edge's: the sum over all its paths.
        heads: Of that, what passes each head; a path through several heads counts for each.
        direct: Of that, what passes no head.
    """

    weight: float
    heads: Float[Tensor, "layer head"]
    direct: float

    def strongest(self, count: int = 3) -> list[tuple[int, int, float]]:
        """Layer, head and weight of the heads that most passes, by size; none of no weight."""
        order = self.heads.flatten().abs().argsort(descending=True)[:count].tolist()
        width = self.heads.shape[1]
        found = [(*divmod(place, width), self.heads.flatten()[place].item()) for place in order]
        return [entry for entry in found if entry[2]]


def through_heads(
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder | None,
    graph: Graph,
    source: Node,
    target: Node,
) -> Through:
    """How one edge of an attribution graph of this pass gets to its target; see `edge_heads`."""
    return edge_heads(frozen, transcoder, graph, [(source, target)])[0]


@torch.no_grad()
def edge_heads(
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder | None,
    graph: Graph,
    edges: Sequence[tuple[Node, Node]],
) -> list[Through]:
    """How some edges get from source to target, with patterns and norms held.

    Args:
        frozen: The pass that the graph was traced from.
        transcoder: The graph's; None for a graph of embeddings, errors and logits.
        graph: See there.
        edges: Source and target of each.

    Raises:
        ValueError: If the graph is of another prompt, or a node is none of its nodes, or can be no
            source or no target.
    """
    if list(graph.tokens) != frozen.tokens.tolist():
        raise ValueError("the graph is of another prompt than the frozen pass")
    if missing := [node for edge in edges for node in edge if node not in graph.places]:
        raise ValueError(f"{missing[0]} is none of the graph's {len(graph)} nodes")
    writes = stream_writes(frozen, transcoder, graph)
    places = {writer: place for place, writer in enumerate(writes.writers)}
    readouts = {target: node_readout(frozen, transcoder, target) for _, target in edges}
    pulled = {target: gradients(frozen, readout) for target, readout in readouts.items()}
    found = {}
    # One source at a time: what it makes all heads write is large.
    for source in dict.fromkeys(source for source, _ in edges):
        # A writer that writes nothing, as an error can, has no place.
        spread = _spread(frozen, writes, places.get(node_writer(source, transcoder), -1))
        for edge in edges:
            if edge[0] == source:
                found[edge] = _through(frozen, spread, readouts[edge[1]], pulled[edge[1]])
    return [found[edge] for edge in edges]


@dataclass(frozen=True, eq=False)
class _Spread:
    """One source's part of the stream.

    Attributes:
        own: What it has written itself by each time.
        heads: What it makes every head write.
    """

    own: Float[Tensor, "time pos d_model"]
    heads: Float[Tensor, "layer head pos d_model"]


def _spread(frozen: FrozenPass, writes: Writes, place: int) -> _Spread:
    own = frozen.embedding.new_zeros(2 * frozen.n_layers + 1, *frozen.embedding.shape)
    mine = (writes.writer == place).nonzero()[:, 0].tolist()
    for write in mine:
        own[int(writes.times[write]) :, int(writes.pos[write])] += writes.vectors[write]
    heads, carried = [], torch.zeros_like(frozen.embedding)
    for layer in range(frozen.n_layers):
        heads.append(frozen.attend_heads(layer, own[2 * layer] + carried))
        carried = carried + heads[-1].sum(0)
    return _Spread(own, torch.stack(heads))


def _through(
    frozen: FrozenPass,
    source: _Spread,
    target: Readout,
    gradient: Float[Tensor, "time pos d_model"],
) -> Through:
    direct = source.own[target.time, target.pos] @ target.direction
    heads = gradient.new_zeros(frozen.n_layers, frozen.n_heads)
    behind = source.heads.new_zeros(frozen.embedding.shape)
    for layer in range(frozen.n_layers):
        if 2 * layer + 1 <= target.time:
            written = source.heads[layer]
            heads[layer] = (written * gradient[2 * layer + 1]).sum((1, 2))
            behind += written.sum(0)
    arrived = behind[target.pos] @ target.direction
    return Through((direct + arrived).item(), heads, direct.item())
