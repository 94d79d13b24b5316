"""An attribution graph of one prompt, as tensors."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitkeep.files import replacing

Kind = Literal["embedding", "feature", "error", "logit"]
_FORMAT = "circuitkeep-graph-1"
_TENSORS = ("values", "activations", "edges", "biases", "probabilities")


@dataclass(frozen=True, order=True)
class Node:
    """What contributes, or is contributed to.

    Attributes:
        kind: ``embedding`` of a token; ``feature`` of a transcoder; ``error``: what a layer's MLP
            adds at a position beyond its features and biases; ``logit``.
        layer: -1 for embeddings, the number of layers for logits.
        pos: Position in the prompt; of logits, the last.
        index: Token of an embedding or a logit; number of a feature in its layer; 0 for errors.
    """

    kind: Kind
    layer: int
    pos: int
    index: int


@dataclass(frozen=True, eq=False)
class Graph:
    """Contributions among the nodes of one prompt, with attention and norms held.

    Attributes:
        tokens: Of the prompt.
        words: The same as text.
        logit_words: Text of the logit nodes' tokens, in their order.
        nodes: Embeddings by position; layer by layer the features (by position, then number)
            and the errors by position; the logits, likeliest first.
        values: What the contributions to a node sum to: a feature's pre-activation, a logit less
            the mean of all logits; 0 for embeddings and errors.
        activations: Of features; 0 for others.
        edges: Contribution of the source to the target's value; rows of embeddings and errors
            are 0.
        biases: What no node contributes: biases of encoder, decoder and model.
        probabilities: Of logit nodes' tokens; 0 for others.
        n_layers: Of the model.
        model: Where it came from.
        transcoder: Where its transcoder came from; None without one.
    """

    tokens: tuple[int, ...]
    words: tuple[str, ...]
    logit_words: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Float[Tensor, " node"]
    activations: Float[Tensor, " node"]
    edges: Float[Tensor, "target source"]
    biases: Float[Tensor, " node"]
    probabilities: Float[Tensor, " node"]
    n_layers: int
    model: str = ""
    transcoder: str | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def places(self) -> dict[Node, int]:
        """Where each node is in the tensors."""
        return {node: place for place, node in enumerate(self.nodes)}

    def of_kind(self, kind: Kind) -> Bool[Tensor, " node"]:
        """Which nodes are of a kind."""
        return torch.tensor([node.kind == kind for node in self.nodes])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph as safetensors, with the rest as JSON in its header.

        Raises:
            OSError: If that cannot be done; a file that was there is untouched.
        """
        about = {
            "tokens": self.tokens,
            "words": self.words,
            "logit_words": self.logit_words,
            "nodes": [list(asdict(node).values()) for node in self.nodes],
            "n_layers": self.n_layers,
            "model": self.model,
            "transcoder": self.transcoder,
        }
        # Copies: tensors that share their memory are refused.
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        # One entry: of several, safetensors writes now one and now the other first.
        header = {_FORMAT: json.dumps(about)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Graph:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not one of these.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if _FORMAT not in header:
                    raise ValueError(f"{path} is no attribution graph ({_FORMAT})")
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"cannot read the graph {path}: {error}") from error
        about = json.loads(header[_FORMAT])
        for name in ("tokens", "words", "logit_words"):
            about[name] = tuple(about[name])
        about["nodes"] = tuple(Node(*fields) for fields in about["nodes"])
        return Graph(**about, **tensors)
