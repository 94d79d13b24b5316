"""What the residual stream of one prompt is made of, and what each part adds to a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.transcoders import CrossLayerTranscoder


class Active(NamedTuple):
    """Active features, sorted by layer, position and number.

    Attributes:
        layer, pos, feature: Where each is, and its number in the layer.
        activations: Of each.
        readers: The gradient of its pre-activation at what its layer's MLP reads.
        biases: What its pre-activation is without an input.
    """

    layer: Int[Tensor, " feature"]
    pos: Int[Tensor, " feature"]
    feature: Int[Tensor, " feature"]
    activations: Float[Tensor, " feature"]
    readers: Float[Tensor, "feature d_model"]
    biases: Float[Tensor, " feature"]


@dataclass(frozen=True, eq=False)
class Written:
    """What features write to one layer's MLP output.

    Attributes:
        features: Which write there.
        pos: Where each does.
        slots: Each one's place among those of its position.
        decoders: Activation times decoder, by position and place; zero where there is none.
    """

    features: Int[Tensor, " written"]
    pos: Int[Tensor, " written"]
    slots: Int[Tensor, " written"]
    decoders: Float[Tensor, "pos slot d_model"]

    def contributions(
        self, gradient: Float[Tensor, "target pos d_model"]
    ) -> Float[Tensor, "target written"]:
        """What each adds to targets whose gradient there is given."""
        by_place = gradient.transpose(0, 1) @ self.decoders.mT
        return by_place[self.pos, :, self.slots].T


@dataclass(frozen=True, eq=False)
class Rows:
    """Contributions to some targets.

    Attributes:
        features, errors, embeddings: Of each source.
        biases: Of all constants together.
    """

    features: Float[Tensor, "target feature"]
    errors: Float[Tensor, "target layer pos"]
    embeddings: Float[Tensor, "target pos"]
    biases: Float[Tensor, " target"]


@dataclass(frozen=True, eq=False)
class Sources:
    """All that is written to the residual stream of a frozen pass, in parts.

    Attributes:
        frozen: The pass.
        active: The features that are sources of their own.
        written: Per layer, what they write to it.
        errors: What every MLP adds beyond them and the decoders' biases.
        constants: What every layer adds whatever its inputs are: biases of decoders and heads.
    """

    frozen: FrozenPass
    active: Active
    written: tuple[Written, ...]
    errors: Float[Tensor, "layer pos d_model"]
    constants: Float[Tensor, "layer pos d_model"]

    def __len__(self) -> int:
        return len(self.active.layer)

    def rows(
        self, layer: int, pos: Int[Tensor, " target"], readers: Float[Tensor, "target d_model"]
    ) -> Rows:
        """What every source adds to some targets of one layer.

        One pass backwards through the layers below serves all targets.

        Args:
            layer: Whose MLP's reading the targets read; the number of layers for what the final
                norm reads.
            pos: Where each reads.
            readers: The gradient of each at what is read there.
        """
        frozen = self.frozen
        count, length = len(pos), len(frozen.tokens)
        gradient = readers.new_zeros(count, length, readers.shape[1])
        gradient[torch.arange(count), pos] = readers
        features = readers.new_zeros(count, len(self.active.layer))
        errors = readers.new_zeros(count, frozen.n_layers, length)
        biases = readers.new_zeros(count)
        if layer < frozen.n_layers and not frozen.parallel[layer]:
            biases += _along(gradient, frozen.head_constants[layer]).sum(1)
            gradient = gradient + frozen.pull(layer, gradient)
        for below in reversed(range(layer)):
            written = self.written[below]
            features[:, written.features] += written.contributions(gradient)
            errors[:, below] = _along(gradient, self.errors[below])
            biases += _along(gradient, self.constants[below]).sum(1)
            gradient = gradient + frozen.pull(below, gradient)
        return Rows(features, errors, _along(gradient, frozen.embedding), biases)

    def only(self, kept: Bool[Tensor, " feature"], transcoder: CrossLayerTranscoder) -> Sources:
        """With some features alone; what the others write counts as error."""
        return _sources(self.frozen, Active(*(part[kept] for part in self.active)), transcoder)


@torch.no_grad()
def find_sources(frozen: FrozenPass, transcoder: CrossLayerTranscoder | None) -> Sources:
    """Take the stream of a frozen pass apart; without a transcoder, all of each MLP is error.

    Raises:
        ValueError: If the transcoder is of another shape than the model.
    """
    if transcoder is None:
        return _sources(frozen, _none_active(frozen), None)
    config = transcoder.config
    shape = (frozen.n_layers, frozen.embedding.shape[1])
    if (config.n_layers, config.d_model) != shape:
        raise ValueError(
            f"the transcoder is of a model with {config.n_layers} layers of width "
            f"{config.d_model}, this one has {shape[0]} of {shape[1]}"
        )
    stream = frozen.mlp_in.to(transcoder.W_enc)
    activations = transcoder.encode(stream)
    layer, pos, index = activations.nonzero(as_tuple=True)
    like = frozen.embedding
    scale = transcoder.input_scale(stream)[layer, pos].to(like)
    active = Active(
        layer,
        pos,
        index,
        activations[layer, pos, index].to(like),
        transcoder.W_enc[layer, index].to(like) * scale[:, None],
        transcoder.b_enc[layer, index].to(like),
    )
    return _sources(frozen, active, transcoder)


def _sources(
    frozen: FrozenPass, active: Active, transcoder: CrossLayerTranscoder | None
) -> Sources:
    constants, errors = frozen.head_constants, frozen.mlp_out
    if transcoder is not None:
        biases = transcoder.b_dec.to(errors)[:, None]
        constants, errors = constants + biases, errors - biases
    written = tuple(_written(frozen, active, transcoder, layer) for layer in range(frozen.n_layers))
    explained = torch.stack([own.decoders.sum(1) for own in written])
    return Sources(frozen, active, written, errors - explained, constants)


def _written(
    frozen: FrozenPass, active: Active, transcoder: CrossLayerTranscoder | None, target: int
) -> Written:
    empty = frozen.embedding.new_zeros(0, frozen.embedding.shape[1])
    parts, found = [empty], [active.layer.new_zeros(0)]
    for layer in range(target + 1) if transcoder is not None else ():
        assert transcoder is not None
        reached = transcoder.config.written(layer)
        here = (active.layer == layer).nonzero()[:, 0]
        if target in reached and len(here):
            decoders = transcoder.W_dec[layer][active.feature[here], reached.index(target)]
            parts.append(decoders.to(empty) * active.activations[here, None])
            found.append(here)
    features, writes = torch.cat(found), torch.cat(parts)
    pos = active.pos[features]
    # The place of each among those of its position, in their order.
    same = pos[:, None] == pos
    slots = same.tril(-1).sum(1)
    width = int(slots.max()) + 1 if len(slots) else 0
    decoders = empty.new_zeros(len(frozen.tokens), width, empty.shape[1])
    decoders[pos, slots] = writes
    return Written(features, pos, slots, decoders)


def _none_active(frozen: FrozenPass) -> Active:
    nothing = frozen.tokens.new_zeros(0)
    none = frozen.embedding.new_zeros(0)
    readers = none.new_zeros(0, frozen.embedding.shape[1])
    return Active(nothing, nothing, nothing, none, readers, none)


def _along(
    gradient: Float[Tensor, "target pos d_model"], written: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "target pos"]:
    return (gradient * written).sum(-1)
