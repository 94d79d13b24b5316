"""What is told about a graph beside the graph itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from circuitkeep.capture import Backend
from circuitkeep.circuits import Head
from circuitkeep.graphs.features import Context, Feature, LogitEffects
from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.heads import edge_values
from circuitkeep.graphs.influence import Pruned, input_shares
from circuitkeep.graphs.scores import attribute_score
from circuitkeep.graphs.through import edge_heads
from circuitkeep.graphs.wording import Score
from circuitkeep.graphs.writes import Writer, logit_readout
from circuitkeep.transcoders import CrossLayerTranscoder

EdgeHeads = Mapping[tuple[Node, Node], Sequence[tuple[str, float]]]
"""Per edge (source, target), the names of heads and what of the edge passes each."""


class Reason(NamedTuple):
    """Why a head attends to a key more than to the others.

    Attributes:
        score: Before the softmax, less the mean score of the other keys.
        query: What adds most to that among what stands at the query, and how much.
        key: The same at the key.
    """

    score: float
    query: tuple[tuple[str, float], ...]
    key: tuple[tuple[str, float], ...]


class HeadEdge(NamedTuple):
    """What a head brings an output from a key to a query, by all ways from there on.

    Attributes:
        head: Which.
        query: From where it attends.
        key: Where to.
        value: What that adds to the output's logit less the mean of all.
        attention: Its share of the head's attention.
        reason: Why it attends there, where that is known.
    """

    head: Head
    query: int
    key: int
    value: float
    attention: float
    reason: Reason | None = None


REASONS = 4
"""Told on either side of a score."""
LEAST = 0.05
"""Of an edge, for a head to be told."""
_AT_ONCE = 8
"""Edges: what its source makes every head write is held for each."""


@dataclass(frozen=True)
class Extras:
    """All of it may be left out.

    Attributes:
        scores: Of the whole graph.
        heads: What of an edge passes which heads; a path through several counts for each.
        head_edges: Per output, what heads bring it from where, the strongest first.
        contexts: Per feature, where in texts it is most active.
        effects: Per feature, the tokens that it promotes.
        word: A token as text.
    """

    scores: Sequence[Score] = ()
    heads: EdgeHeads = field(default_factory=dict)
    head_edges: Mapping[Node, Sequence[HeadEdge]] = field(default_factory=dict)
    contexts: Mapping[Feature, Sequence[Context]] = field(default_factory=dict)
    effects: Mapping[Feature, LogitEffects] = field(default_factory=dict)
    word: Callable[[int], str] = str


def heads_of_edges(
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder | None,
    graph: Graph,
    pruned: Pruned,
    most: int,
    count: int = 3,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EdgeHeads:
    """Which heads the strongest kept edges pass.

    Args:
        frozen: The pass that the graph was traced from.
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
    found = {}
    for start in range(0, len(edges), _AT_ONCE):
        part = edges[start : start + _AT_ONCE]
        for edge, through in zip(part, edge_heads(frozen, transcoder, graph, part), strict=True):
            passed = [
                *(
                    (str(Head(layer, index)), part)
                    for layer, index, part in through.strongest(count)
                ),
                ("no head", through.direct),
            ]
            least = LEAST * abs(through.weight)
            found[edge] = [each for each in passed if each[1] and abs(each[1]) >= least]
        progress(min(start + _AT_ONCE, len(edges)), len(edges))
    return found


def edges_of_heads(frozen: FrozenPass, graph: Graph, most: int) -> dict[Node, list[HeadEdge]]:
    """What heads bring each output of a graph from where.

    Args:
        frozen: The pass that the graph was traced from.
        graph: See there.
        most: Of each output, the largest by size.
    """
    found = {}
    for node in graph.nodes:
        if node.kind != "logit":
            continue
        values = edge_values(frozen, logit_readout(frozen, node.index))
        order = values.abs().flatten().argsort(descending=True, stable=True)[:most].cpu()
        places = np.stack(np.unravel_index(order.numpy(), values.shape), 1).tolist()
        found[node] = [
            HeadEdge(Head(layer, index), query, key, value, float(frozen.patterns[tuple(place)]))
            for place, value in zip(places, values.flatten()[order].tolist(), strict=True)
            for layer, index, query, key in [place]
            if value
        ]
    return found


def reasoned(
    backend: Backend,
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder | None,
    edges: Mapping[Node, Sequence[HeadEdge]],
    most: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Node, list[HeadEdge]]:
    """The same edges, the first few of each output with why their heads attend there.

    Args:
        backend: The model.
        frozen: Its pass on the prompt.
        transcoder: Takes the MLPs apart.
        edges: See `edges_of_heads`.
        most: Of each output. Where a head has but one key, or the model's scores are not rebuilt,
            there is no reason.
        progress: Told how many reasons are done, and of how many.
    """
    wanted = {edge[:3] for own in edges.values() for edge in own[:most]}
    known: dict[tuple[Head, int, int], Reason | None] = {}
    for done, (head, query, key) in enumerate(sorted(wanted), 1):
        try:
            found = attribute_score(backend, frozen, head, query, key, transcoder, contrast=True)
        except ValueError:
            known[head, query, key] = None
        else:
            sides = (
                tuple((_short_name(writer), value) for writer, value in [*side.items()][:REASONS])
                for side in (found.by_query, found.by_key)
            )
            known[head, query, key] = Reason(found.score, *sides)
        progress(done, len(wanted))
    return {
        node: [edge._replace(reason=known.get(edge[:3])) for edge in own]
        for node, own in edges.items()
    }


def _short_name(writer: Writer) -> str:
    return {
        "embedding": "token",
        "feature": f"L{writer.layer} feature {writer.index}",
        "error": f"L{writer.layer} error",
        "mlp": f"L{writer.layer} MLP",
        "head": str(writer.head),
        "constant": f"L{writer.layer} biases" if writer.layer >= 0 else "biases",
    }[writer.kind]
