"""What is told about a graph beside the graph itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from circuitkeep.capture import Backend
from circuitkeep.circuits import Head
from circuitkeep.graphs.features import Context, Feature, LogitEffects
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.influence import Pruned, input_shares
from circuitkeep.graphs.through import edge_heads
from circuitkeep.graphs.wording import Score
from circuitkeep.transcoders import CrossLayerTranscoder

EdgeHeads = Mapping[tuple[Node, Node], Sequence[tuple[str, float]]]
"""Per edge (source, target), the names of heads and what of the edge passes each."""
LEAST = 0.05
"""Of an edge, for a head to be told."""
_AT_ONCE = 16
"""Edges: what its source makes every head write is held for each."""


@dataclass(frozen=True)
class Extras:
    """All of it may be left out.

    Attributes:
        scores: Of the whole graph.
        heads: What of an edge passes which heads; a path through several counts for each.
        contexts: Per feature, where in texts it is most active.
        effects: Per feature, the tokens that it promotes.
        word: A token as text.
    """

    scores: Sequence[Score] = ()
    heads: EdgeHeads = field(default_factory=dict)
    contexts: Mapping[Feature, Sequence[Context]] = field(default_factory=dict)
    effects: Mapping[Feature, LogitEffects] = field(default_factory=dict)
    word: Callable[[int], str] = str


def heads_of_edges(
    backend: Backend,
    transcoder: CrossLayerTranscoder | None,
    graph: Graph,
    pruned: Pruned,
    most: int,
    count: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EdgeHeads:
    """Which heads the strongest kept edges pass.

    Args:
        backend: The graph's model.
        transcoder: The graph's.
        graph: The whole graph.
        pruned: What is kept of it.
        most: Edges that are told, those with the most influence first.
        count: Heads of an edge.
        progress: Told how many edges are done, of how many.

    Returns:
        Per edge the strongest heads and last, as ``no head``, what passes none; all of at least 5%
        of the edge's size.
    """
    targets, sources = pruned.edges.nonzero(as_tuple=True)
    weights = pruned.influence + graph.probabilities
    scores = input_shares(graph.edges)[targets, sources] * weights[targets]
    order = scores.argsort(descending=True, stable=True)[:most]
    edges = [
        (graph.nodes[source], graph.nodes[target])
        for source, target in zip(sources[order].tolist(), targets[order].tolist(), strict=True)
    ]
    if not edges:
        return {}
    frozen = freeze(backend, torch.tensor(graph.tokens, device=backend.device))
    found = {}
    for start in range(0, len(edges), _AT_ONCE):
        part = edges[start : start + _AT_ONCE]
        for edge, through in zip(part, edge_heads(frozen, transcoder, graph, part), strict=True):
            passed = [
                *((str(Head(layer, index)), part) for layer, index, part in through.strongest(count)),
                ("no head", through.direct),
            ]
            least = LEAST * abs(through.weight)
            found[edge] = [each for each in passed if each[1] and abs(each[1]) >= least]
        progress(min(start + _AT_ONCE, len(edges)), len(edges))
    return found
