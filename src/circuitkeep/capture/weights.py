"""The weights of heads, one pair of thin matrices each, as a model's forward pass uses them.

Nothing is detached: gradients reach the parameters. Weights of one layer are views of the
parameters where the layout allows it (no folded norm, no adapter); several layers are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitkeep.capture import attach
from circuitkeep.capture.affine import Affine
from circuitkeep.capture.base import Backend
from circuitkeep.capture.layouts import projections, rotation, token_maps
from circuitkeep.circuits import Head

_Turn = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class HeadWeights:
    """Weights of every query head of some layers: ``x W_Q + b_Q`` is the query, and so on.

    Before rotary turning (see `qk`) and before any normalization of queries and keys. Under
    grouped-query attention, keys and values are stored once per group and repeated when read.

    Attributes:
        layers: The model's numbers of the layers along the first axis.
        W_Q: Queries.
        kv_W_K: Keys, per key-value head.
        kv_W_V: Values, per key-value head.
        W_O: What a head's output becomes in the residual stream.
        b_Q: Or None, as the other biases, where the model has none.
        kv_b_K: Per key-value head.
        kv_b_V: Per key-value head.
        b_O: One per layer: it belongs to no head.
    """

    layers: tuple[int, ...]
    W_Q: Float[Tensor, "layer head d_model d_head"]
    kv_W_K: Float[Tensor, "layer kv_head d_model d_head"]
    kv_W_V: Float[Tensor, "layer kv_head d_model d_value"]
    W_O: Float[Tensor, "layer head d_value d_model"]
    b_Q: Float[Tensor, "layer head d_head"] | None
    kv_b_K: Float[Tensor, "layer kv_head d_head"] | None
    kv_b_V: Float[Tensor, "layer kv_head d_value"] | None
    b_O: Float[Tensor, "layer d_model"] | None
    _turns: tuple[_Turn | None, ...] = field(repr=False)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Keys, per query head."""
        return self._repeated(self.kv_W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_value"]:
        """Values, per query head."""
        return self._repeated(self.kv_W_V)

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"] | None:
        """Key biases, per query head."""
        return None if self.kv_b_K is None else self._repeated(self.kv_b_K)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_value"] | None:
        """Value biases, per query head."""
        return None if self.kv_b_V is None else self._repeated(self.kv_b_V)

    def qk(
        self, offset: int = 0
    ) -> tuple[
        Float[Tensor, "layer head d_model d_head"], Float[Tensor, "layer head d_head d_model"]
    ]:
        r"""The QK circuit :math:`W_Q R_{o} W_K^\top` in two factors, without the softmax scale.

        Args:
            offset: Query position minus key position. Rotary models turn queries by it, as their
                own rotary module says; in others the product is the same at every offset, because
                there positions come with the embedding, or as a bias. A temperature that a rotary
                module multiplies in (YaRN) is left out, as the softmax scale is.

        Raises:
            ValueError: If the model turns queries in a way that is not known here, or that depends
                on the length of the prompt (only for an offset other than 0).
        """
        query = self.W_Q
        if offset and any(self._turns):
            turned = [
                w if turn is None else turn(w, offset)
                for w, turn in zip(query, self._turns, strict=True)
            ]
            query = torch.stack(turned)
        return query, self.W_K.mT

    def ov(
        self,
    ) -> tuple[
        Float[Tensor, "layer head d_model d_value"], Float[Tensor, "layer head d_value d_model"]
    ]:
        """The OV circuit :math:`W_V W_O` in two factors."""
        return self.W_V, self.W_O

    def _repeated(self, grouped: Tensor) -> Tensor:
        # Not a view: no strides can express a repeated group.
        times = self.W_Q.shape[1] // grouped.shape[1]
        return grouped if times == 1 else grouped.repeat_interleave(times, dim=1)


@dataclass(frozen=True)
class TokenWeights:
    """Embedding and unembedding.

    Attributes:
        W_E: What a token puts into the residual stream, without positions.
        W_U: Logits of what is in the residual stream at the end.
        b_U: Or None.
    """

    W_E: Float[Tensor, "token d_model"]
    W_U: Float[Tensor, "d_model token_out"]
    b_U: Float[Tensor, " token_out"] | None


def head_weights(
    model: nn.Module | Backend, layers: Sequence[int] | None = None, fold_norm: bool = False
) -> HeadWeights:
    r"""Read the weights of all heads of some layers.

    With `fold_norm`, what the norm before the attention does the same to every token is multiplied
    in, :math:`W' = P \operatorname{diag}(g) W` and :math:`b' = b + \beta W`, with its scale
    :math:`g`, its shift :math:`\beta` and, for a LayerNorm, the centring
    :math:`P = I - \frac1d \mathbb{1}\mathbb{1}^\top`; the division by the token's own size is what
    is left out. The scales of norms on queries and keys (Qwen3) and on the attention's output
    (Gemma 2) are folded likewise.

    Args:
        model: A Hugging Face model, a `TransformerBridge`, or a backend attached to one. (To attach
            runs three tokens through the model, once; reading weights runs none.)
        layers: All if None.
        fold_norm: In fp32 at least.

    Raises:
        ValueError: If a layer is outside the model, or a layout, norm or adapter is not known; the
            message names its class.
    """
    backend = model if isinstance(model, Backend) else attach(model)
    chosen = tuple(range(backend.n_layers) if layers is None else layers)
    outside = [layer for layer in chosen if not 0 <= layer < backend.n_layers]
    if outside or not chosen:
        raise ValueError(
            f"layers={list(chosen)}: choose one or more of 0 to {backend.n_layers - 1}"
        )
    read = [projections(backend, layer, fold_norm) for layer in chosen]
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = (_stacked([part[i] for part in read]) for i in range(3))
    w_o = _stack([part.o.matrix.unflatten(0, (backend.n_heads, -1)) for part in read])
    b_o = _stacked_biases([part.o for part in read])
    turns = tuple(rotation(backend, layer) for layer in chosen)
    return HeadWeights(chosen, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, turns)


@dataclass(frozen=True)
class HeadMaps:
    """What some heads do to the residual stream; its last coordinate, 1, multiplies their biases.

    Attributes:
        W_Q: Queries.
        W_K: Keys. Without rotary turning their bias is left out: it adds as much to the scores of
            all keys.
        W_V: Values.
        W_O: What a head's output becomes in the residual stream.
    """

    W_Q: Float[Tensor, "head d_model_1 d_head"]
    W_K: Float[Tensor, "head d_model_1 d_head"]
    W_V: Float[Tensor, "head d_model_1 d_value"]
    W_O: Float[Tensor, "head d_value d_model"]


def head_maps(backend: Backend, heads: Sequence[Head]) -> HeadMaps:
    """Read the weights of some heads with their biases, norms not folded in.

    Raises:
        ValueError: If a layout is not known (see `head_weights`), or processes hold shards of the
            weights.
    """
    if backend.sharded:
        raise ValueError(
            "the weights of heads are read outside the model's forward pass, where FSDP holds them "
            "in shards; leave the terms that need weights out, or train by DDP"
        )
    places = sorted(range(len(heads)), key=lambda place: heads[place].layer)
    found = []
    # One layer at a time, as several would be copied, and its heads together, because each reading
    # costs the backward pass a gradient as large as the parameter.
    for number, own in groupby(places, key=lambda place: heads[place].layer):
        layer = head_weights(backend, [number])
        index = [heads[place].index for place in own]
        group = [i * layer.kv_W_K.shape[1] // layer.W_Q.shape[1] for i in index]
        key_bias = layer.kv_b_K if layer._turns[0] else None
        found.append(
            (
                _augmented(layer.W_Q, layer.b_Q, index),
                _augmented(layer.kv_W_K, key_bias, group),
                _augmented(layer.kv_W_V, layer.kv_b_V, group),
                layer.W_O[0, index],
            )
        )
    back = sorted(range(len(places)), key=places.__getitem__)
    return HeadMaps(*(torch.cat(parts)[back] for parts in zip(*found, strict=True)))


@torch.no_grad()
def head_turns(
    backend: Backend, heads: Sequence[Head]
) -> Float[Tensor, "head offset d_head d_head"] | None:
    """How rotary models turn queries at the offsets 0, 1, 2, 4 ... within the context.

    Returns:
        The score at offset ``o`` is ``x W_Q turn W_K^T y``. None if no head's queries are turned.

    Raises:
        ValueError: If the model turns queries in a way that is not known; see `HeadWeights.qk`.
    """
    turns = {head.layer: rotation(backend, head.layer) for head in heads}
    if not any(turns.values()):
        return None
    width = head_maps(backend, heads[:1]).W_Q.shape[-1]
    unit = torch.eye(width, device=backend.device)[None]
    offsets = [0, *(2**n for n in range((backend.context_length - 1).bit_length()))]

    def of(turn: _Turn | None) -> Tensor:
        return torch.stack([unit[0] if turn is None else turn(unit, o)[0] for o in offsets])

    return torch.stack([of(turns[head.layer]) for head in heads])


def token_weights(model: nn.Module | Backend, fold_norm: bool = False) -> TokenWeights:
    """Read embedding and unembedding.

    Args:
        model: See `head_weights`.
        fold_norm: Fold the final norm into the unembedding, as `head_weights` folds the others.

    Raises:
        ValueError: If the embedding is not as wide as the residual stream, or a module is of a
            class that is not known.
    """
    backend = model if isinstance(model, Backend) else attach(model)
    embedding, unembedding = token_maps(backend, fold_norm)
    return TokenWeights(embedding, unembedding.matrix, unembedding.bias)


def _augmented(matrices: Tensor, biases: Tensor | None, index: list[int]) -> Tensor:
    chosen = matrices[0, index]
    last = chosen.new_zeros(len(chosen), chosen.shape[2]) if biases is None else biases[0, index]
    return torch.cat([chosen, last[:, None]], 1)


def _stacked(parts: Sequence[Affine]) -> tuple[Tensor, Tensor | None]:
    return _stack([part.matrix.transpose(0, 1) for part in parts]), _stacked_biases(parts)


def _stacked_biases(parts: Sequence[Affine]) -> Tensor | None:
    biases = [part.bias for part in parts if part.bias is not None]
    assert len(biases) in (0, len(parts)), "some layers with a bias and some without"
    return _stack(biases) if biases else None


def _stack(values: Sequence[Tensor]) -> Tensor:
    return values[0][None] if len(values) == 1 else torch.stack(list(values))
