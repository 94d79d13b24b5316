"""Every head of a model as a transform of the residual stream, from its weights alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.weights import HeadWeights, head_weights
from circuitkeep.circuits import Head
from circuitkeep.functional.transforms import (
    cleanness,
    effective_rank,
    polar,
    principal_angles,
)
from circuitkeep.functional.weights import eigenvalue_score, factored_eigenvalues


@dataclass(frozen=True)
class MapGeometry:
    """One map of a head, whatever the basis.

    Attributes:
        norm: Frobenius norm.
        effective_rank: Directions that it has, counted by their share of its stretch.
        rotation: Share of its squared norm that is left beside the nearest multiple of a partial
            isometry; see `circuitkeep.functional.transforms.Cleanness`.
        projection: The same beside a multiple of the projection onto what it reads.
        gain: That multiple: positive for copying, negative for suppressing.
        turn: Mean angle between what it reads and what it writes, in radians, by how much it
            amplifies each pair of directions.
        overlap_angle: Mean principal angle between the directions it reads and those it writes,
            in radians.
        eigenvalue_score: Sum of its eigenvalues over the sum of their sizes, from -1 to 1.
        eigenvalue_angle: Mean angle of its eigenvalues from the positive axis, in radians, each
            counted by its size: 0 for pure scaling, pi / 2 for rotation by a right angle, pi for
            a change of sign.
    """

    norm: float
    effective_rank: float
    rotation: float
    projection: float
    gain: float
    turn: float
    overlap_angle: float
    eigenvalue_score: float
    eigenvalue_angle: float


@dataclass(frozen=True)
class HeadGeometry:
    """A head as a transform.

    Attributes:
        head: Which.
        ov: What it makes of what it attends to, :math:`W_V W_O`.
        qk: What it matches a query with, :math:`W_Q W_K^T`, at no distance.
        translation: Length of what it writes whatever it reads, :math:`b_V W_O`.
        singular_values: Of the OV map, largest first.
        eigenvalues: Of the OV map, as real and imaginary parts, largest first.
    """

    head: Head
    ov: MapGeometry
    qk: MapGeometry
    translation: float
    singular_values: tuple[float, ...]
    eigenvalues: tuple[tuple[float, float], ...]


@torch.no_grad()
def head_geometry(backend: Backend) -> tuple[HeadGeometry, ...]:
    """Describe every head.

    What the norm before the attention does the same to every token is folded in, so that the maps
    are those of the stream up to the size of each token's; no number depends on the stream's basis
    or on the gauge inside a head.

    Raises:
        ValueError: If a layout or norm is not known.
    """
    found = []
    for layer in range(backend.n_layers):
        weights = head_weights(backend, [layer], fold_norm=True)
        ov, qk = weights.ov(), weights.qk()
        for index in range(backend.n_heads):
            own = ov[0][0, index], ov[1][0, index]
            eigenvalues = factored_eigenvalues(*own)
            order = eigenvalues.abs().argsort(descending=True)
            found.append(
                HeadGeometry(
                    Head(layer, index),
                    _map(*own),
                    _map(qk[0][0, index], qk[1][0, index]),
                    _translation(weights, index),
                    tuple(polar(*own).stretch.tolist()),
                    tuple((value.real.item(), value.imag.item()) for value in eigenvalues[order]),
                )
            )
    return tuple(found)


def _translation(weights: HeadWeights, index: int) -> float:
    if weights.b_V is None:
        return 0.0
    return (weights.b_V[0, index] @ weights.W_O[0, index]).norm().item()


def _map(a: Float[Tensor, "d r"], b: Float[Tensor, "r d"]) -> MapGeometry:
    transform = polar(a, b)
    clean = cleanness(transform)
    eigenvalues = factored_eigenvalues(a, b)
    # The cosine of each direction that is read with what it becomes.
    cosines = (transform.read * transform.written).sum(0).clamp(-1, 1)
    amplified = transform.stretch.square()
    return MapGeometry(
        norm=transform.stretch.norm().item(),
        effective_rank=effective_rank(transform.stretch).item(),
        rotation=clean.rotation.item(),
        projection=clean.projection.item(),
        gain=clean.gain.item(),
        turn=_mean(cosines.acos(), amplified),
        overlap_angle=principal_angles(transform.read, transform.written).mean().item(),
        eigenvalue_score=eigenvalue_score(eigenvalues).item(),
        eigenvalue_angle=_mean(_angles(eigenvalues), eigenvalues.abs()),
    )


def _angles(values: Complex[Tensor, " value"]) -> Float[Tensor, " value"]:
    return values.angle().abs()


def _mean(values: Float[Tensor, " value"], weights: Float[Tensor, " value"]) -> float:
    total = weights.sum()
    return ((values * weights).sum() / total).item() if total > 0 else math.nan
