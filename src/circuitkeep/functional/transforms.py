"""Heads as transforms of space: what they read, what they write, how clean the way between is.

Maps are rows times matrix, ``x a b``, given by their two factors of rank ``r``; nothing of size
``d x e`` is made. All numbers are the same whatever the basis of the residual stream and the gauge
inside the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.weights import gram, in_float64


class Transform(NamedTuple):
    r"""A map as a partial isometry and a stretch.

    .. math:: A B = U \operatorname{diag}(s) V^\top = (U V^\top)(V \operatorname{diag}(s) V^\top)

    Attributes:
        read: Orthonormal directions :math:`U` that it reads, the most amplified first.
        stretch: What each is multiplied by, :math:`s \ge 0`.
        written: Orthonormal directions :math:`V` that it turns them into.
    """

    read: Float[Tensor, "*batch d r"]
    stretch: Float[Tensor, "*batch r"]
    written: Float[Tensor, "*batch e r"]


class Cleanness(NamedTuple):
    """Share of a map's squared norm that is left of it beside the nearest clean one.

    Attributes:
        rotation: Beside a multiple of a partial isometry: every direction that is read is turned
            and amplified alike. 0 for a clean one, 1 at most.
        projection: Beside a multiple of the projection onto the directions that are read: each
            comes out as itself, amplified alike. 0 for a clean copying head within its subspace.
        scaling: Beside a multiple of the identity. Near 1 for any map of low rank.
        gain: That multiple of the projection: positive for a map that copies, negative for one
            that suppresses.
    """

    rotation: Float[Tensor, "*batch"]
    projection: Float[Tensor, "*batch"]
    scaling: Float[Tensor, "*batch"]
    gain: Float[Tensor, "*batch"]


def polar(a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r e"]) -> Transform:
    """Take a map apart into what it reads, how much it amplifies that, and what it writes.

    Returns:
        ``r`` directions; where the map has a lower rank, the last of them with a stretch of 0.
    """
    wide, (a, b) = in_float64(a, b)
    left, right = torch.linalg.qr(a), torch.linalg.qr(b.mT)
    inner = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    return Transform(
        (left.Q @ inner.U).to(wide), inner.S.to(wide), (right.Q @ inner.Vh.mT).to(wide)
    )


def effective_rank(stretch: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    r"""How many directions a map has, counted by their share of its stretch.

    .. math:: \exp H(p), \quad p_i = s_i / \textstyle\sum_j s_j

    Returns:
        From 1, for a single direction, to r, for r alike; 0 for the zero map.

    Source:
        Roy & Vetterli 2007, "The effective rank", EUSIPCO.
    """
    total = stretch.sum(-1, keepdim=True)
    shares = stretch / total.masked_fill(total == 0, 1)
    return torch.special.entr(shares).sum(-1).exp() * (total[..., 0] > 0)


def cleanness(transform: Transform) -> Cleanness:
    """How far a map is from a rotation, a projection, a scaling, whatever their size.

    Returns:
        Shares from 0 to 1; of the zero map all are 0.
    """
    read, stretch, written = transform
    # A map of lower rank is judged on the directions that it does read.
    used = (stretch > 1e-9 * stretch.amax(-1, keepdim=True)).to(stretch)
    rank = used.sum(-1).clamp(min=1)
    square = stretch.square().sum(-1)
    size = square.masked_fill(square == 0, 1)
    trace = (stretch * (read * written).sum(-2)).sum(-1) if _square(transform) else 0 * square
    return Cleanness(
        rotation=_left(square, stretch.sum(-1).square() / (rank * size)),
        projection=_left(square, trace.square() / (rank * size)),
        scaling=_left(square, trace.square() / (read.shape[-2] * size)),
        gain=trace / rank,
    )


def principal_angles(
    x: Float[Tensor, "*batch d r"], y: Float[Tensor, "*batch d s"]
) -> Float[Tensor, "*batch angle"]:
    """Angles between two subspaces, smallest first, in radians from 0 to pi / 2.

    Args:
        x, y: Columns that span them; need not be orthonormal, must be independent.

    Returns:
        ``min(r, s)`` angles: all 0 where one subspace lies in the other. Small angles are as exact
        as large ones: those are read off their sines.

    Source:
        Björck & Golub 1973, "Numerical methods for computing angles between linear subspaces",
        Mathematics of Computation 27.
    """
    wide, (x, y) = in_float64(x, y)
    if x.shape[-1] < y.shape[-1]:
        x, y = y, x
    x, y = torch.linalg.qr(x).Q, torch.linalg.qr(y).Q
    shared = x.mT @ y
    cosines = torch.linalg.svdvals(shared).clamp(0, 1)
    sines = torch.linalg.svdvals(y - x @ shared).flip(-1).clamp(0, 1)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos()).to(wide)


def subspace_overlap(
    x: Float[Tensor, "*batch d r"], y: Float[Tensor, "*batch d s"]
) -> Float[Tensor, "*batch"]:
    r"""How much of the smaller subspace lies in the larger: the mean squared cosine.

    Returns:
        From 0 to 1; a random pair has :math:`\max(r, s) / d` on average.
    """
    return principal_angles(x, y).cos().square().mean(-1)


def product_cosine(
    a: Float[Tensor, "*batch d r"],
    b: Float[Tensor, "*batch r e"],
    kept_a: Float[Tensor, "*batch d s"],
    kept_b: Float[Tensor, "*batch s e"],
) -> Float[Tensor, "*batch"]:
    """Cosine of the angle between two maps as vectors of d x e numbers: 1 if they differ in size.

    Returns:
        From -1 to 1; 0 where one of them is 0. Differentiable, in float64.
    """
    _, (a, b, c, d) = in_float64(a, b, kept_a, kept_b)
    shared = ((c.mT @ a) * (d @ b.mT)).sum((-2, -1))
    sizes = squared_norm(a, b) * squared_norm(c, d)
    return shared * sizes.masked_fill(sizes == 0, 1).rsqrt()


def spectrum_ranks(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r e"]
) -> Float[Tensor, "*batch order"]:
    r"""Logarithms of a map's effective ranks (Rényi's), by power sums instead of singular values.

    .. math:: \frac{1}{1 - \alpha} \log \sum_i p_i^\alpha, \quad
              p_i = s_i^2 / \textstyle\sum_j s_j^2, \quad \alpha = 2, 3, 4

    Rotating what is read and what is written, each by itself, changes nothing.

    Returns:
        From 0, for a single direction, to log r, for r alike; 0 for the zero map. Differentiable,
        in float64; unlike singular values it does not wait for the device.
    """
    _, (a, b) = in_float64(a, b)
    square = gram(a) @ gram(b.mT)
    size = _trace(square)
    empty = size == 0
    share = square / size.masked_fill(empty, 1)[..., None, None]
    powers = [share @ share]
    powers += [powers[-1] @ share, powers[0] @ powers[0]]
    sums = torch.stack([_trace(power) for power in powers], -1)
    orders = torch.arange(2, 5, device=sums.device)
    return sums.masked_fill(empty[..., None], 1).log() / (1 - orders)


def recurrences(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r d"]
) -> Float[Tensor, "*batch power"]:
    r"""How far a map sends directions to themselves when it is applied once, twice, four times.

    .. math:: \frac{\operatorname{tr} M}{\sqrt r \lVert M \rVert_F}, \quad
              \frac{\operatorname{tr} M^2}{\operatorname{tr} M M^\top}, \quad
              \frac{\operatorname{tr} M^4}{\operatorname{tr} (M M^\top)^2}

    Rotating the space in which it reads and writes changes nothing; rotating what is read alone
    does.

    Returns:
        Each from -1 to 1: 1 for a projection, (-1, 1, 1) for its opposite; 0 for the zero map.
        Differentiable, in float64.
    """
    _, (a, b) = in_float64(a, b)
    core, square = b @ a, gram(a) @ gram(b.mT)
    twice = core @ core
    size = _trace(square)
    traces = torch.stack([_trace(core), _trace(twice), _trace(twice @ twice)], -1)
    most = [(core.shape[-1] * size).where(size > 0, 1).sqrt(), size, _trace(square @ square)]
    sizes = torch.stack(most, -1)
    return traces / sizes.masked_fill(sizes == 0, 1)


def squared_norm(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r e"]
) -> Float[Tensor, "*batch"]:
    """Squared Frobenius norm of a map, in float64."""
    _, (a, b) = in_float64(a, b)
    return (gram(a) * gram(b.mT)).sum((-2, -1))


def _trace(matrix: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _square(transform: Transform) -> bool:
    return transform.read.shape[-2] == transform.written.shape[-2]


def _left(square: Tensor, explained: Tensor) -> Tensor:
    return torch.where(square > 0, (1 - explained).clamp(min=0), 0.0)
