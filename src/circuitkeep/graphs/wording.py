"""What the page and the terminal say alike: what a node is, and how much a graph explains."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.graphs.graph import Graph
from circuitkeep.graphs.influence import Pruned, graph_scores, input_shares
from circuitkeep.pages import percent
from circuitkeep.pages.attention import visible


class Score(NamedTuple):
    """A figure about the whole graph.

    Attributes:
        name: Of it.
        text: Its value.
        meaning: What it says, in a sentence.
    """

    name: str
    text: str
    meaning: str


def node_name(graph: Graph, place: int) -> str:
    """What a node is, in a few words."""
    node = graph.nodes[place]
    if node.kind == "logit":
        return f"output “{visible(graph.logit_words[place - first_logit(graph)])}”"
    at = position_name(graph, node.pos)
    return {
        "embedding": f"token {at}",
        "feature": f"L{node.layer} feature {node.index} at {at}",
        "error": f"L{node.layer} error at {at}",
    }[node.kind]


def position_name(graph: Graph, pos: int) -> str:
    """The token at a position."""
    return f"“{visible(graph.words[pos])}” ({pos})"


def first_logit(graph: Graph) -> int:
    """Where the likeliest logit is."""
    return len(graph) - len(graph.logit_words)


def influences(graph: Graph, pruned: Pruned) -> Float[Tensor, " node"]:
    """The share of the traced outputs' inputs that each node provides, over all paths."""
    return pruned.influence / graph.probabilities.sum().clamp(min=1e-10)


def strongest(values: Float[Tensor, " place"], most: int) -> list[tuple[int, float]]:
    """Places and values, the largest first; none that is not above 0."""
    order = values.argsort(descending=True, stable=True)[:most].tolist()
    return [(place, values[place].item()) for place in order if values[place] > 0]


def explained(graph: Graph, pruned: Pruned) -> tuple[Score, ...]:
    """How much of the whole graph its features explain, and what has no explanation."""
    scores, is_error = graph_scores(graph), graph.of_kind("error")
    into = input_shares(graph.edges)[first_logit(graph), is_error].sum().item()
    layers = torch.tensor([node.layer for node in graph.nodes])
    begins = pruned.influence * (is_error | graph.of_kind("embedding"))
    lost = [begins[is_error & (layers == layer)].sum() for layer in range(graph.n_layers)]
    by_layer = [
        f"L{layer}\N{NO-BREAK SPACE}{percent((one / begins.sum()).item())}"
        for layer, one in enumerate(lost)
    ]
    return (
        Score(
            "completeness",
            percent(scores.completeness),
            "Share of what flows into nodes that comes from features and tokens, not from errors; "
            "nodes count by their influence.",
        ),
        Score(
            "replacement",
            percent(scores.replacement),
            "Share of the influence on the outputs that begins with tokens, not with errors.",
        ),
        Score(
            "errors into the output",
            percent(into),
            "Share of what flows straight into the likeliest output that comes from errors.",
        ),
        Score(
            "errors by layer",
            ", ".join(by_layer),
            "Share of the influence on the outputs that begins with each layer's errors.",
        ),
    )
