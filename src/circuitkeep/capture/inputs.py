"""What attention is given: the stream behind its norm, and the turn of each position."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture.base import Backend
from circuitkeep.capture.layouts import norm_before, rotation


def attention_input(
    backend: Backend, layer: int, stream: Float[Tensor, "*rest d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """What a layer's attention reads of the residual stream that enters the layer.

    ``attention_input(...) W_V + b_V`` of the weights without folded norms is a head's value.

    Raises:
        ValueError: If the norm is not known.
    """
    return norm_before(backend, layer)(stream)


@torch.no_grad()
def position_turns(
    backend: Backend, layer: int, positions: int, d_head: int
) -> Float[Tensor, "pos d_head d_head"] | None:
    """How rotary models turn queries and keys at each position, ``(x W_Q + b_Q) turn``.

    A temperature that a rotary module multiplies in (YaRN) is left out.

    Returns:
        None if they are not turned.

    Raises:
        ValueError: If the model turns them in a way that is not known.
    """
    turn = rotation(backend, layer)
    if turn is None:
        return None
    unit = torch.eye(d_head, device=backend.device)[None]
    return torch.stack([turn(unit, position)[0] for position in range(positions)])
