"""How the maps of heads have moved between two models, from their weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.functional.weights import factored_norm, product_drift


@dataclass(frozen=True)
class HeadMap:
    """What a head does to the residual stream, in thin factors; float64, on the CPU.

    Attributes:
        value, out: Of the OV map.
        query, key: Of the QK map at no distance.
        shift: What it writes whatever it reads.
    """

    value: Float[Tensor, "d_model d_value"]
    out: Float[Tensor, "d_value d_model"]
    query: Float[Tensor, "d_model d_head"]
    key: Float[Tensor, "d_head d_model"]
    shift: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class HeadDrift:
    """How a head's maps have moved; no figure depends on the gauge inside the head.

    Attributes:
        ov_angle: Between the OV maps as vectors of their entries, in radians, from 0 to pi.
        ov_log_scale: Natural logarithm of how much larger the OV map's norm has become.
        ov_translation: Distance of what the head writes whatever it reads from what that was, in
            units of the base's OV norm; 0 without biases.
        qk_angle: As `ov_angle`, of the QK maps at no distance.
        qk_log_scale: As `ov_log_scale`.
    """

    ov_angle: float
    ov_log_scale: float
    ov_translation: float
    qk_angle: float
    qk_log_scale: float


@torch.no_grad()
def head_transforms(backend: Backend, heads: Iterable[Head]) -> dict[Head, HeadMap]:
    """Read the maps of some heads, what the norm before does alike to all tokens folded in.

    Raises:
        ValueError: If a layout or norm is not known, or processes hold shards of the weights.
    """
    found = {}
    for head in heads:
        weights = head_weights(backend, [head.layer], fold_norm=True)
        (value, out), (query, key) = weights.ov(), weights.qk()
        value, out, query, key = (
            part[0, head.index].double().cpu() for part in (value, out, query, key)
        )
        shift = torch.zeros(out.shape[1], dtype=torch.float64)
        if weights.b_V is not None:
            shift = weights.b_V[0, head.index].double().cpu() @ out
        found[head] = HeadMap(value, out, query, key, shift)
    return found


def head_drift(base: Mapping[Head, HeadMap], now: Mapping[Head, HeadMap]) -> dict[Head, HeadDrift]:
    """How each head has moved, by its map in both models.

    Nothing of the size of the stream squared is made. Angles near 0 are as exact as others.
    """
    return {head: _drift(base[head], now[head]) for head in base}


def _drift(base: HeadMap, now: HeadMap) -> HeadDrift:
    ov = (base.value, base.out), (now.value, now.out)
    shift = (now.shift - base.shift).norm() / factored_norm(*ov[0])
    return HeadDrift(
        *_angle_and_scale(*ov),
        shift.item(),
        *_angle_and_scale((base.query, base.key), (now.query, now.key)),
    )


def _angle_and_scale(
    base: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    sizes = factored_norm(*base), factored_norm(*now)
    # Both brought to norm 1, the distance between them is the chord of the angle.
    square = product_drift(now[0], now[1] / sizes[1], base[0], base[1] / sizes[0])
    angle = 2 * (square.clamp(0, 4).sqrt() / 2).asin()
    return angle.item(), (sizes[1] / sizes[0]).log().item()
