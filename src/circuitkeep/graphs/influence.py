"""How much each node and edge matters to the logits, and what of a graph is worth looking at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.graphs.graph import Graph


@dataclass(frozen=True, eq=False)
class Pruned:
    """The part of a graph that carries most of the influence.

    Attributes:
        nodes: Which are kept.
        edges: Which are kept.
        influence: Of every node of the whole graph; see `influence`.
        cumulative: Share of all influence that is with nodes of as much or more.
    """

    nodes: Bool[Tensor, " node"]
    edges: Bool[Tensor, "target source"]
    influence: Float[Tensor, " node"]
    cumulative: Float[Tensor, " node"]


@dataclass(frozen=True)
class GraphScores:
    """How much of a graph runs through what its features explain.

    Attributes:
        replacement: Share of the influence that begins with embeddings, not with errors.
        completeness: Share of what flows into nodes that comes from features and embeddings, not
            from errors; nodes count by their influence.
    """

    replacement: float
    completeness: float


def influence(graph: Graph) -> Float[Tensor, " node"]:
    r"""What part of the logits' inputs each node provides, over all paths.

    With the size of every edge as a share of its target's, :math:`\bar A`, and the probabilities
    :math:`p` of the logits, :math:`p (\bar A + \bar A^2 + \dots)`.

    Source:
        Ameisen et al. 2025, "Circuit Tracing", https://transformer-circuits.pub/2025/
        attribution-graphs/methods.html, as in https://github.com/decoderesearch/circuit-tracer.
    """
    return influence_of(graph.edges, graph.probabilities)


def influence_of(
    edges: Float[Tensor, "target source"], weights: Float[Tensor, " node"]
) -> Float[Tensor, " node"]:
    """See `influence`; of edges without a cycle.

    Args:
        edges: Contributions.
        weights: Of the nodes that matter for themselves.
    """
    shares = input_shares(edges)
    total, current = torch.zeros_like(weights), weights
    for _ in range(len(weights)):
        current = current @ shares
        if not current.any():
            break
        total = total + current
    return total


def prune(graph: Graph, nodes: float = 0.8, edges: float = 0.98) -> Pruned:
    """Keep the fewest nodes, then edges, that hold a share of all influence.

    Embeddings and logits always stay; what no path joins to a logit, or a feature that nothing is
    left to feed, goes.

    Args:
        graph: The whole graph.
        nodes: Share of the influence of all nodes, above 0 and up to 1.
        edges: Share of the influence of the edges among those.

    Raises:
        ValueError: If a share is out of range.

    Source:
        See `influence`.
    """
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 < share <= 1:
            raise ValueError(f"{name}={share}: give the share to keep, above 0 and up to 1")
    scores = influence(graph)
    is_logit, is_feature = graph.of_kind("logit"), graph.of_kind("feature")
    ends = graph.of_kind("embedding") | is_logit
    kept = (scores >= _least(scores, nodes)) | ends
    among = graph.edges * kept[:, None] * kept
    weights = influence_of(among, graph.probabilities) + graph.probabilities
    edge_scores = input_shares(among) * weights[:, None]
    kept_edges = edge_scores >= _least(edge_scores.flatten(), edges)
    while True:
        joined = kept & (kept_edges.any(0) | ends) & (kept_edges.any(1) | ~is_feature)
        kept_edges = kept_edges & joined[:, None] & joined
        if torch.equal(joined, kept):
            break
        kept = joined
    order = scores.argsort(descending=True)
    cumulative = torch.empty_like(scores)
    cumulative[order] = scores[order].cumsum(0) / scores.sum().clamp(min=1e-10)
    return Pruned(kept, kept_edges, scores, cumulative)


def graph_scores(graph: Graph) -> GraphScores:
    """See `GraphScores`.

    Source:
        See `influence`.
    """
    scores = influence(graph)
    is_error = graph.of_kind("error")
    begins = scores[graph.of_kind("embedding")].sum()
    lost = scores[is_error].sum()
    explained = 1 - input_shares(graph.edges)[:, is_error].sum(1)
    weights = scores + graph.probabilities
    return GraphScores(
        replacement=float(begins / (begins + lost)),
        completeness=float((explained * weights).sum() / weights.sum()),
    )


def input_shares(edges: Float[Tensor, "target source"]) -> Float[Tensor, "target source"]:
    """The size of each edge as a share of all that its target gets."""
    size = edges.abs()
    return size / size.sum(1, keepdim=True).clamp(min=1e-10)


def _least(scores: Float[Tensor, " score"], share: float) -> Tensor:
    """The smallest score among the largest that make up a share of the sum; never 0."""
    ordered = scores.sort(descending=True).values
    cumulative = ordered.cumsum(0) / ordered.sum().clamp(min=1e-10)
    place = int((cumulative < share).sum())
    last = max(int((ordered > 0).sum()) - 1, 0)
    return ordered[min(place, last)].clamp(min=torch.finfo(scores.dtype).tiny)
