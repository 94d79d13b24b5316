"""A pruned graph in the schema of the public frontend for attribution graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitkeep import __version__
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.influence import Pruned

FEATURE_TYPES = {
    "embedding": "embedding",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
}


def frontend_json(
    graph: Graph,
    pruned: Pruned,
    slug: str,
    scan: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    labels: Mapping[tuple[int, int], str] | None = None,
) -> dict[str, Any]:
    """The graph as circuit-tracer's and Neuronpedia's frontends read it.

    Args:
        graph: The whole graph.
        pruned: What is kept of it.
        slug: The graph's name, and its file's: ``{slug}.json``.
        scan: Which transcoders the features are of, for a server that knows them; by default the
            transcoder's path, or the model's.
        thresholds: ``node_threshold`` and ``edge_threshold`` of the pruning.
        labels: What features are called, by layer and number.

    Returns:
        A dictionary for JSON: ``metadata``, ``qParams``, ``nodes``, ``links``.

    Source:
        ``circuit_tracer/frontend/graph_models.py`` and ``utils/create_graph_files.py`` of
        github.com/decoderesearch/circuit-tracer, schema version 1.
    """
    thresholds, labels = thresholds or {}, labels or {}
    cumulative = pruned.cumulative.tolist()
    ids = [_node_id(graph, node) for node in graph.nodes]
    words = [whole_characters(word) for word in graph.words]
    targets, sources = pruned.edges.nonzero(as_tuple=True)
    weights = graph.edges[targets, sources].tolist()
    return {
        "metadata": {
            "slug": slug,
            "scan": scan or graph.transcoder or graph.model,
            "transcoder_list": [],
            "prompt_tokens": words,
            "prompt": whole_characters("".join(graph.words)),
            "node_threshold": thresholds.get("node_threshold"),
            "schema_version": 1,
            "info": {"generator": {"name": "circuitkeep", "version": __version__}},
            "pruning_settings": dict(thresholds),
        },
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _node(graph, place, ids[place], cumulative[place], labels)
            for place in pruned.nodes.nonzero()[:, 0].tolist()
        ],
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for target, source, weight in zip(
                targets.tolist(), sources.tolist(), weights, strict=True
            )
        ],
    }


def graph_metadata(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The list of graphs that a frontend shows, ``graph-metadata.json``, with `found` in it.

    Args:
        found: What `frontend_json` returned.
        path: The list as it is; there may be none.

    Raises:
        ValueError: If the file is something else.
    """
    listed = []
    if path.exists():
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["graphs"]
            listed = [each for each in listed if each["slug"] != found["metadata"]["slug"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no list of graphs ({error}): move it, or choose another output"
            ) from error
    return {"graphs": [*listed, found["metadata"]]}


def whole_characters(text: str) -> str:
    """Text without surrogates, which stand for bytes and no JSON reader need accept."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _node_id(graph: Graph, node: Node) -> str:
    """Layer, number and position; the layer of logits counts the embedding too."""
    layer = {"embedding": "E", "logit": str(graph.n_layers + 1)}.get(node.kind, str(node.layer))
    return f"{layer}_{_number(node)}_{node.pos}"


def _number(node: Node) -> int:
    return -1 if node.kind == "error" else node.index


def _node(
    graph: Graph, place: int, node_id: str, influence: float, labels: Mapping[tuple[int, int], str]
) -> dict[str, Any]:
    node = graph.nodes[place]
    layer, _, _ = node_id.split("_")
    first_logit = len(graph) - len(graph.logit_words)
    probability = graph.probabilities[place].item()
    # Features of one number share it at all positions: the frontend lights them up together.
    shared = 0 if node.kind == "feature" else node.pos
    number = {"embedding": node.pos, "error": -1, "logit": node.index}.get(node.kind)
    label = labels.get((node.layer, node.index), "") if node.kind == "feature" else ""
    if node.kind == "logit":
        word = whole_characters(graph.logit_words[place - first_logit])
        label = f'Output "{word}" (p={probability:.3f})'
    return {
        "node_id": node_id,
        "feature": paired(node.layer, node.index) if number is None else number,
        "layer": layer,
        "ctx_idx": node.pos,
        "feature_type": FEATURE_TYPES[node.kind],
        "token_prob": probability,
        "is_target_logit": place == first_logit,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if node.kind == 'logit' else layer}_{_number(node)}-{shared}",
        "clerp": label,
        "influence": None if node.kind == "logit" else influence,
        "activation": graph.activations[place].item() if node.kind == "feature" else None,
    }


def paired(layer: int, index: int) -> int:
    """Cantor's number of a pair, by which the frontend knows a feature of a layer."""
    return (layer + index) * (layer + index + 1) // 2 + index
