"""Planted damage: noise on what a circuit's heads read, or on what they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head

Kind = Literal["qk", "ov"]
KINDS: tuple[Kind, ...] = ("qk", "ov")

FIRST_SCALE = 0.25
LARGEST_SCALE = 32.0
"""Of the noise, when one is searched: beyond so many times a head's own product nothing is left."""
TRIES = 25


@contextmanager
def damaged(
    backend: Backend, heads: Sequence[Head], kind: Kind, scale: float, seed: int
) -> Iterator[None]:
    r"""Add noise to the weights of some heads, and put them back at the end, bit for bit.

    Noise :math:`E` goes on a head's queries, :math:`(W_Q + E) W_K^\top`, or on its output,
    :math:`W_V (W_O + E)`, never on keys and values, which heads may share. It is as large as
    :math:`\lVert E W_K^\top \rVert = \text{scale} \cdot \lVert W_Q W_K^\top \rVert`, or likewise of
    :math:`W_V E`: relative to the product, for that alone is what a head does.

    Args:
        backend: The model.
        heads: Each gets noise of its own.
        kind: ``qk`` or ``ov``.
        scale: The noise's Frobenius norm over that of the product.
        seed: The same seed gives the same noise but for its size.

    Raises:
        ValueError: If a head's weights are no plain parameters (adapters), or their layout is not
            known; see `head_weights`.
    """
    generator = torch.Generator().manual_seed(seed)
    storages = {value.untyped_storage().data_ptr() for value in backend.model.parameters()}
    places: list[tuple[Tensor, Tensor, Tensor]] = []
    for head in heads:
        own, other = _own_and_other(backend, head, kind)
        if own.untyped_storage().data_ptr() not in storages:
            raise ValueError(
                f"the weights of {head} are no plain parameters that noise could be added to "
                "(adapters?); merge them into the model first"
            )
        noise = torch.randn(own.shape, generator=generator).to(own.device)
        size = scale * _product_norm(own, other, kind) / _product_norm(noise, other, kind)
        places.append((own, own.clone(), (size * noise).to(own.dtype)))
    try:
        with torch.no_grad():
            for own, _, noise in places:
                own.add_(noise)
        yield
    finally:
        with torch.no_grad():
            for own, kept, _ in places:
                own.copy_(kept)


def scale_for(
    loss_at: Callable[[float], float],
    loss: float,
    known: MutableMapping[float, float],
    tolerance: float = 0.01,
) -> float | None:
    """The smallest scale found at which so much is lost.

    Args:
        loss_at: What is lost at a scale, as a share.
        loss: What should be lost.
        known: Scale -> loss, of what was measured before; what is measured is added.
        tolerance: How far off the loss may be.

    Returns:
        None if not even `LARGEST_SCALE` takes that much, or the loss leaps over it.
    """
    known.setdefault(0.0, 0.0)
    while (top := min((s for s, lost in known.items() if lost >= loss), default=None)) is None:
        following = max(2 * max(known), FIRST_SCALE)
        if following > LARGEST_SCALE:
            return None
        known[following] = loss_at(following)
    for _ in range(TRIES):
        bottom = max(s for s in known if s < top)
        for scale in (bottom, top):
            if abs(known[scale] - loss) <= tolerance:
                return scale
        share = (loss - known[bottom]) / (known[top] - known[bottom])
        middle = bottom + min(0.9, max(0.1, share)) * (top - bottom)
        known[middle] = loss_at(middle)
        top = middle if known[middle] >= loss else top
    return None


def _own_and_other(
    backend: Backend, head: Head, kind: Kind
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "d_model d"]]:
    """What noise goes on, and what it is multiplied with; both detached."""
    weights = head_weights(backend, [head.layer])
    group = head.index * weights.kv_W_K.shape[1] // weights.W_Q.shape[1]
    if kind == "qk":
        return weights.W_Q[0, head.index].detach(), weights.kv_W_K[0, group].detach()
    return weights.W_O[0, head.index].detach(), weights.kv_W_V[0, group].detach()


def _product_norm(
    own: Float[Tensor, "rows columns"], other: Float[Tensor, "d_model d"], kind: Kind
) -> float:
    """Frobenius norm of the head's QK or OV product, without forming it."""
    one, two = own.double(), other.double()
    inner = one.mT @ one if kind == "qk" else one @ one.mT
    return (inner * (two.mT @ two)).sum().clamp(min=0).sqrt().item()
