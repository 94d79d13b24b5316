"""Graphs made by hand, before or without a model, and the exact models."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from circuitkeep.graphs import Graph, Node


@pytest.fixture(scope="session")
def oracles():
    """The module `oracles` of this folder: exact models (files under tests/ are no package)."""
    name = "graph_oracles"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "oracles.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def made_graph(words=("<s>", " Lily", " likes"), logits=(" Lily", " Tim"), features=3, seed=0):
    """Two layers, `features` at each layer and position, whose edges are drawn at random.

    Edges into a node sum to its value, less its bias.
    """
    generator = torch.Generator().manual_seed(seed)
    positions, layers = len(words), 2
    nodes = [Node("embedding", -1, pos, 10 + pos) for pos in range(positions)]
    for layer in range(layers):
        nodes += [
            Node("feature", layer, pos, 5 * number + pos)
            for pos in range(positions)
            for number in range(features)
        ]
        nodes += [Node("error", layer, pos, 0) for pos in range(positions)]
    nodes += [Node("logit", layers, positions - 1, 10 + number) for number in range(len(logits))]
    edges = torch.zeros(len(nodes), len(nodes))
    for target, to in enumerate(nodes):
        for source, start in enumerate(nodes):
            if to.kind in ("feature", "logit") and start.layer < to.layer and start.pos <= to.pos:
                edges[target, source] = torch.randn((), generator=generator)
    receives = torch.tensor([node.kind in ("feature", "logit") for node in nodes])
    is_feature = torch.tensor([node.kind == "feature" for node in nodes])
    biases = 0.1 * receives
    probabilities = torch.zeros(len(nodes))
    probabilities[-len(logits) :] = 0.9 * 0.5 ** torch.arange(1.0, 1 + len(logits))
    values = edges.sum(1) + biases
    return Graph(
        tokens=tuple(10 + pos for pos in range(positions)),
        words=tuple(words),
        logit_words=tuple(logits),
        nodes=tuple(nodes),
        values=values,
        activations=values.abs() * is_feature,
        edges=edges,
        biases=biases,
        probabilities=probabilities,
        n_layers=layers,
        model="made",
        transcoder="by hand" if features else None,
    )
