"""All that is written to the residual stream of a frozen pass, and what it does to a readout.

Where a stream is read or written is told by a *time*: layer ``l``'s attention reads at ``2 l`` and
writes at ``2 l + 1``; its MLP writes at ``2 l + 2``, and reads at ``2 l + 1``, or at ``2 l`` where
it stands beside the attention; the final norm reads at twice the number of layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.transcoders import CrossLayerTranscoder

Kind = Literal["embedding", "head", "mlp", "feature", "error", "constant"]


@dataclass(frozen=True, order=True)
class Writer:
    """What writes to the stream.

    Attributes:
        kind: ``embedding``; ``head`` of what its values read (biases apart); ``mlp`` whole, or
            ``feature`` and ``error`` of a transcoder; ``constant``: biases of the layer.
        layer: -1 for embeddings.
        pos: Where: of a head its query.
        index: Of a head or feature in its layer; token of an embedding; 0 for others.
    """

    kind: Kind
    layer: int
    pos: int
    index: int = 0

    @property
    def head(self) -> Head | None:
        """The head, if it is one."""
        return Head(self.layer, self.index) if self.kind == "head" else None

    def __str__(self) -> str:
        names = {
            "embedding": "embedding",
            "head": f"L{self.layer}H{self.index}",
            "mlp": f"MLP {self.layer}",
            "feature": f"feature {self.layer}/{self.index}",
            "error": f"error {self.layer}",
            "constant": f"biases {self.layer}",
        }
        return f"{names[self.kind]} at {self.pos}"


@dataclass(frozen=True, eq=False)
class Writes:
    """What is written to one prompt's stream: it sums to the stream at every time and position.

    A feature of a cross-layer transcoder writes several times, all else once.

    Attributes:
        writers: Without those that write nothing.
        writer: Whose each write is: a place in `writers`.
        times: When it enters the stream.
        pos: Where.
        vectors: What.
    """

    writers: tuple[Writer, ...]
    writer: Int[Tensor, " write"]
    times: Int[Tensor, " write"]
    pos: Int[Tensor, " write"]
    vectors: Float[Tensor, "write d_model"]

    def per_writer(self, amounts: Float[Tensor, "*rest write"]) -> Float[Tensor, "*rest writer"]:
        """Sums of what the writes of each writer do."""
        total = amounts.new_zeros(*amounts.shape[:-1], len(self.writers))
        return total.index_add(-1, self.writer, amounts)

    def read(
        self, gradients: Float[Tensor, "*rest time pos d_model"]
    ) -> Float[Tensor, "*rest write"]:
        """What each write does to what has `gradients`; those that come too late do nothing."""
        early = self.times < gradients.shape[-3]
        times = self.times.clamp(max=gradients.shape[-3] - 1)
        found = (gradients[..., times, self.pos, :] * self.vectors).sum(-1)
        return found * early


@dataclass(frozen=True, eq=False)
class Readout:
    """A linear function of the stream at one position and time.

    Attributes:
        direction: Its gradient there.
        pos: Where it reads.
        time: When it reads.
        bias: What it adds whatever the stream is.
        value: What it reads in the model itself, bias included.
        name: For people.
    """

    direction: Float[Tensor, " d_model"]
    pos: int
    time: int
    bias: float
    value: float
    name: str


def logit_readout(
    frozen: FrozenPass, token: int, against: int | None = None, pos: int = -1
) -> Readout:
    """A token's logit, less the mean of all logits, or less that of another token.

    Args:
        frozen: The pass.
        token: The token.
        against: Another token; None for the mean.
        pos: Where; the last position by default.
    """
    pos = range(len(frozen.tokens))[pos]

    def contrast(values: Tensor) -> Tensor:
        return values[..., token] - (values.mean(-1) if against is None else values[..., against])

    direction = contrast(frozen.W_U) * frozen.final_scale[pos]
    return Readout(
        direction,
        pos,
        2 * frozen.n_layers,
        contrast(frozen.b_U).item(),
        contrast(frozen.logits[pos]).item(),
        f"logit of {token}" + ("" if against is None else f" less that of {against}"),
    )


def feature_readout(
    frozen: FrozenPass, transcoder: CrossLayerTranscoder, layer: int, pos: int, feature: int
) -> Readout:
    """A feature's pre-activation; what a normalizing transcoder divides by is held."""
    read = frozen.mlp_in[layer, pos]
    scale = transcoder.input_scale(read[None].to(transcoder.W_enc))[0]
    direction = (transcoder.W_enc[layer, feature] * scale).detach().to(read)
    bias = transcoder.b_enc[layer, feature].item()
    return Readout(
        direction,
        pos,
        reading_time(frozen, layer),
        bias,
        (read @ direction).item() + bias,
        f"feature {layer}/{feature}",
    )


def reading_time(frozen: FrozenPass, layer: int) -> int:
    """When the MLP of a layer reads."""
    return 2 * layer + (not frozen.parallel[layer])


def gradients(frozen: FrozenPass, readout: Readout) -> Float[Tensor, "time pos d_model"]:
    """Of a readout, at every time up to its own, through all heads."""
    start = torch.zeros_like(frozen.embedding)
    start[readout.pos] = readout.direction
    return pulled(frozen, start, readout.time)


def pulled(
    frozen: FrozenPass, gradient: Float[Tensor, "*rest pos d_model"], time: int
) -> Float[Tensor, "*rest time pos d_model"]:
    """A gradient at `time`, and what it is at every time before."""
    found = [gradient]
    for before in reversed(range(time)):
        last = found[-1]
        found.append(last if before % 2 else last + frozen.pull(before // 2, last))
    return torch.stack(found[::-1], dim=-3)


@torch.no_grad()
def stream_writes(
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder | None = None,
    graph: Graph | None = None,
) -> Writes:
    """Take the stream of a frozen pass apart.

    Args:
        frozen: The pass.
        transcoder: Its active features and what they leave out stand for the MLPs, if given.
        graph: Of the same pass: what features write that are none of its nodes counts as error, as
            there. Otherwise every active feature is a writer.
    """
    length = len(frozen.tokens)
    found: dict[Writer, list[tuple[int, Tensor]]] = defaultdict(list)
    for pos, token in enumerate(frozen.tokens.tolist()):
        found[Writer("embedding", -1, pos, token)].append((0, frozen.embedding[pos]))
    for layer in range(frozen.n_layers):
        heads = frozen.attend_heads(layer, frozen.streams[layer])
        for pos in range(length):
            for index, vector in enumerate(heads[:, pos]):
                found[Writer("head", layer, pos, index)].append((2 * layer + 1, vector))
            constant = Writer("constant", layer, pos)
            found[constant].append((2 * layer + 1, frozen.head_constants[layer, pos]))
            if transcoder is None:
                written = 2 * layer + 2, frozen.mlp_out[layer, pos]
                found[Writer("mlp", layer, pos)].append(written)
    if transcoder is not None:
        kept = None if graph is None else {n for n in graph.nodes if n.kind == "feature"}
        _add_features(found, frozen, transcoder, kept)
    rows = [
        (writer, time, vector)
        for writer, entries in found.items()
        for time, vector in entries
        if vector.any()
    ]
    return _stacked(rows)


def _add_features(
    found: dict[Writer, list[tuple[int, Tensor]]],
    frozen: FrozenPass,
    transcoder: CrossLayerTranscoder,
    kept: Collection[Node] | None,
) -> None:
    activations = transcoder.encode(frozen.mlp_in.to(transcoder.W_enc)).to(frozen.mlp_out)
    biases = transcoder.b_dec.detach().to(frozen.mlp_out)
    errors = frozen.mlp_out - biases[:, None]
    for layer, pos, feature in activations.nonzero().tolist():
        if kept is not None and Node("feature", layer, pos, feature) not in kept:
            continue
        strength = activations[layer, pos, feature]
        written = transcoder.config.written(layer)
        for target, decoder in zip(written, transcoder.W_dec[layer][feature], strict=True):
            write = strength * decoder.to(errors)
            errors[target, pos] -= write
            found[Writer("feature", layer, pos, feature)].append((2 * target + 2, write))
    for layer, row in enumerate(errors):
        for pos, error in enumerate(row):
            time = 2 * layer + 2
            found[Writer("error", layer, pos)].append((time, error))
            found[Writer("constant", layer, pos)].append((time, biases[layer]))


def _stacked(rows: Sequence[tuple[Writer, int, Tensor]]) -> Writes:
    writers = tuple(dict.fromkeys(writer for writer, _, _ in rows))
    places = {writer: place for place, writer in enumerate(writers)}
    device = rows[0][2].device
    return Writes(
        writers,
        torch.tensor([places[writer] for writer, _, _ in rows], device=device),
        torch.tensor([time for _, time, _ in rows], device=device),
        torch.tensor([writer.pos for writer, _, _ in rows], device=device),
        torch.stack([vector for _, _, vector in rows]),
    )


def node_writer(node: Node, transcoder: CrossLayerTranscoder | None) -> Writer:
    """The writer that a node of an attribution graph is; without a transcoder, all of an MLP.

    Raises:
        ValueError: If it is a logit, which writes nothing.
    """
    if node.kind == "logit":
        raise ValueError(f"{node} is a logit: it is only read, so no edge begins there")
    kind = "mlp" if node.kind == "error" and transcoder is None else node.kind
    return Writer(kind, node.layer, node.pos, node.index)


def node_readout(
    frozen: FrozenPass, transcoder: CrossLayerTranscoder | None, node: Node
) -> Readout:
    """What a node of an attribution graph reads.

    Raises:
        ValueError: If it reads nothing (an embedding, an error), or is a feature and there is no
            transcoder.
    """
    if node.kind == "logit":
        return logit_readout(frozen, node.index, pos=node.pos)
    if node.kind == "feature" and transcoder is not None:
        return feature_readout(frozen, transcoder, node.layer, node.pos, node.index)
    reason = "needs its transcoder" if node.kind == "feature" else "reads nothing"
    raise ValueError(f"{node} {reason}, so no edge can end there")
