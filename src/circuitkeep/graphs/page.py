"""An attribution graph as one HTML file that needs no network: to look at, and to take apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitkeep.graphs.extras import Extras, HeadEdge
from circuitkeep.graphs.features import Feature
from circuitkeep.graphs.graph import Graph
from circuitkeep.graphs.influence import Pruned, input_shares
from circuitkeep.graphs.wording import first_logit, influences, node_name, position_name, strongest
from circuitkeep.pages import number, percent, render, signed
from circuitkeep.pages.attention import visible

SCRIPTS = (
    "page_parts.js",
    "page_layout.js",
    "page_draw.js",
    "page_node.js",
    "page_pins.js",
    "page_controls.js",
    "page.js",
)
LISTED = 12
"""Rows of the tables below the picture."""


def render_page(
    graph: Graph,
    pruned: Pruned,
    extras: Extras | None = None,
) -> str:
    """The graph as a page: the picture, what each node is, a subgraph of one's own, paths, tables.

    Self-contained: style, scripts and figures are inlined. Tokens are escaped, and a content
    security policy lets no script but these run and nothing be loaded.

    Args:
        graph: The whole graph: shares are of all that flows into a node, before pruning.
        pruned: What is shown of it.
        extras: What else is known.
    """
    extras = extras or Extras()
    shares = input_shares(graph.edges)
    here = Path(__file__)
    names = [node_name(graph, place) for place in range(len(graph))]
    first = first_logit(graph)
    others = pruned.nodes & ~graph.of_kind("logit")
    content = {
        "graph": graph,
        "prompt": "".join(visible(word).replace("␣", " ") for word in graph.words),
        "logits": [
            (
                visible(word),
                percent(graph.probabilities[first + place].item()),
                signed(graph.values[first + place].item(), 2),
            )
            for place, word in enumerate(graph.logit_words)
        ],
        "scores": extras.scores,
        "inputs": [
            (names[source], signed(graph.edges[first, source].item()), percent(share))
            for source, share in strongest(shares[first] * pruned.edges[first], LISTED)
        ],
        "top_logit": visible(graph.logit_words[0]),
        "most": [
            (names[place], percent(share), _activation(graph, place))
            for place, share in strongest(influences(graph, pruned) * others, LISTED)
        ],
        "kept": (int(pruned.nodes.sum()), len(graph)),
        "kept_edges": (int(pruned.edges.sum()), int((graph.edges != 0).sum())),
        "has_heads": bool(extras.heads),
        "head_edges": [
            (
                str(edge.head),
                position_name(graph, edge.query),
                position_name(graph, edge.key),
                percent(edge.attention),
                signed(edge.value, 2),
            )
            for edge in extras.head_edges.get(graph.nodes[first], ())[:LISTED]
        ],
    }
    return render(
        here.with_name("page.html.j2"),
        here.with_name("page.css").read_text(encoding="utf-8"),
        [here.with_name(name).read_text(encoding="utf-8") for name in SCRIPTS],
        _data(graph, pruned, extras),
        content,
    )


def _activation(graph: Graph, place: int) -> str:
    is_feature = graph.nodes[place].kind == "feature"
    return number(graph.activations[place].item()) if is_feature else ""


def _data(graph: Graph, pruned: Pruned, extras: Extras) -> dict[str, Any]:
    """What the scripts need. Edges stand by their part in all influence, the largest first."""
    shown = pruned.nodes.nonzero()[:, 0].tolist()
    place_of = {place: index for index, place in enumerate(shown)}
    shares = input_shares(graph.edges)
    reaching = influences(graph, pruned)
    targets, sources = pruned.edges.nonzero(as_tuple=True)
    score = shares[targets, sources] * (pruned.influence + graph.probabilities)[targets]
    order = score.argsort(descending=True, stable=True)
    targets, sources, score = targets[order], sources[order], score[order]
    ends = list(zip(sources.tolist(), targets.tolist(), strict=True))
    features = [graph.nodes[place] for place in shown if graph.nodes[place].kind == "feature"]
    return {
        "layers": graph.n_layers,
        "words": [visible(word) for word in graph.words],
        "nodes": [_node(graph, place, reaching) for place in shown],
        "edges": {
            "source": [place_of[source] for source, _ in ends],
            "target": [place_of[target] for _, target in ends],
            "weight": [_short(value) for value in graph.edges[targets, sources].tolist()],
            "share": [_short(value) for value in shares[targets, sources].tolist()],
            "score": [_short(value) for value in score.tolist()],
        },
        "heads": {
            str(at): [[name, _short(value)] for name, value in heads]
            for at, (source, target) in enumerate(ends)
            if (heads := extras.heads.get((graph.nodes[source], graph.nodes[target])))
        },
        "head_edges": {
            str(place_of[graph.places[node]]): [_head_edge(edge) for edge in edges]
            for node, edges in extras.head_edges.items()
        },
        "features": {
            f"{node.layer}_{node.index}": _reading((node.layer, node.index), extras)
            for node in features
        },
    }


def _node(graph: Graph, place: int, influence: Float[Tensor, " node"]) -> dict[str, Any]:
    node = graph.nodes[place]
    first = first_logit(graph)
    word = graph.logit_words[place - first] if place >= first else graph.words[node.pos]
    return {
        "kind": node.kind,
        "layer": node.layer,
        "pos": node.pos,
        "index": node.index,
        "word": visible(word),
        "value": _short(graph.values[place].item()),
        "bias": _short(graph.biases[place].item()),
        "activation": _short(graph.activations[place].item()),
        "influence": _short(influence[place].item()),
        "probability": _short(graph.probabilities[place].item()),
    }


def _head_edge(edge: HeadEdge) -> dict[str, Any]:
    told = {"head": str(edge.head), "query": edge.query, "key": edge.key}
    told |= {"value": _short(edge.value), "attention": _short(edge.attention)}
    if edge.reason is None:
        return told
    sides = ("query", edge.reason.query), ("key", edge.reason.key)
    parts = {side: [[name, _short(value)] for name, value in found] for side, found in sides}
    return {**told, "reason": {"score": _short(edge.reason.score), **parts}}


def _reading(feature: Feature, extras: Extras) -> dict[str, Any]:
    """Texts and tokens of a feature, as far as they are known."""
    known: dict[str, Any] = {}
    if (contexts := extras.contexts.get(feature)) is not None:
        known["contexts"] = [
            {
                "words": [visible(extras.word(token)) for token in context.tokens],
                "activations": [_short(value) for value in context.activations],
            }
            for context in contexts
        ]
    if (effects := extras.effects.get(feature)) is not None:
        for name in ("promoted", "suppressed"):
            known[name] = [
                [visible(extras.word(token)), _short(value)]
                for token, value in getattr(effects, name)
            ]
    return known


def _short(value: float) -> float:
    """Four digits are more than a page shows, and make it a third of the size."""
    return float(f"{value:.4g}")
