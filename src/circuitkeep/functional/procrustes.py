"""What is left between two sets of points once one is laid upon the other, as a loss.

`circuitkeep.functional.manifolds.fit_similarity` measures the same by a singular value
decomposition. That waits for the device, and its gradient is infinite where singular values meet;
nothing here does or is.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.functional.weights import in_float64

_QUINTIC = 3.4445, -4.7750, 2.0315
_FAST, _EXACT = 19, 8


def distance_after_fit(
    points: Float[Tensor, "*batch point d"],
    kept: Float[Tensor, "*batch point d"],
    present: Bool[Tensor, "*batch point"],
    scale: bool,
) -> Float[Tensor, "*batch"]:
    r"""Squared distance from what was kept to the points, moved onto it as nearly as can be.

    .. math:: \min_{c, R, t} \sum_i \lVert x_i - c\,y_i R - t \rVert^2
              = \lVert X \rVert^2 - \frac{\lVert X^\top Y \rVert_*^2}{\lVert Y \rVert^2}

    with ``X`` and ``Y`` centred, ``R`` a rotation or reflection, and the sum of singular values
    :math:`\lVert\cdot\rVert_*`; :math:`\lVert X \rVert^2 + \lVert Y \rVert^2
    - 2 \lVert X^\top Y \rVert_*` where the scale ``c`` is 1.

    Args:
        points: Y.
        kept: X; gets no gradient.
        present: Which points count.
        scale: Whether points may be scaled, too.

    Returns:
        Summed over the points, in float64; 0 with gradient 0 where a similarity transform takes one
        set to the other, so always for one point, and for two that may be scaled. Points that are
        all the same leave the whole spread of what was kept.

    Source:
        Schönemann 1966, Psychometrika 31; with scale and translation, Gower 1975, Psychometrika 40.
    """
    _, (x, y) = in_float64(kept.detach(), points)
    x, y = (_centred(side, present) for side in (x, y))
    total = nuclear_norm(torch.linalg.qr(x.mT).R @ y)
    size_x, size_y = (side.square().sum((-2, -1)) for side in (x, y))
    if scale:
        left = size_x - total.square() / size_y.masked_fill(size_y == 0, 1)
    else:
        left = size_x + size_y - 2 * total
    return left.clamp(min=0)  # of rounding


def nuclear_norm(matrix: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch"]:
    r"""Sum of singular values: the product with the matrix's orthogonal polar factor.

    .. math:: \lVert M \rVert_* = \langle M, U V^\top \rangle, \quad
              \mathrm{d} \lVert M \rVert_* = \langle \mathrm{d} M, U V^\top \rangle

    The factor is found by products of matrices alone. Singular values below 1e-10 of the whole
    count for less than they are.

    Source:
        Björck & Bowie 1971, SIAM Journal on Numerical Analysis 8, for the iteration; Jordan 2024,
        kellerjordan.github.io/posts/muon, for the faster first steps.
    """
    with torch.no_grad():
        norm = torch.linalg.matrix_norm(matrix, keepdim=True)
        factor = matrix / norm.masked_fill(norm == 0, 1)
        a, b, c = _QUINTIC
        for _ in range(_FAST):
            gram = factor @ factor.mT
            factor = a * factor + (b * gram + c * gram @ gram) @ factor
        for _ in range(_EXACT):
            factor = 1.5 * factor - 0.5 * factor @ factor.mT @ factor
    return (matrix * factor).sum((-2, -1))


def spread_and_frames(
    points: Float[Tensor, "row *batch point d"],
    present: Bool[Tensor, "row *batch point"],
    dimensions: Int[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch d k"]]:
    """How far apart points lie, and in which directions; each point is the mean over its rows.

    Args:
        points, present: Points that occur in no row do not count.
        dimensions: How many directions.

    Returns:
        Mean squared distance from the centre, and orthonormal principal directions; columns that
        are too many are 0.
    """
    counts = present.sum(0)
    means = (points.double() * present[..., None]).sum(0) / counts.clamp(min=1)[..., None]
    centred = _centred(means, counts > 0)
    spread = centred.square().sum((-2, -1)) / (counts > 0).sum(-1).clamp(min=1)
    found = torch.linalg.svd(centred, full_matrices=False)
    wanted = torch.arange(found.S.shape[-1], device=points.device) < dimensions[..., None]
    wanted &= found.S.gt(1e-9 * found.S[..., :1])
    return spread, (found.Vh * wanted[..., None])[..., : int(dimensions.max()), :].mT


def _centred(
    points: Float[Tensor, "*batch point d"], present: Bool[Tensor, "*batch point"]
) -> Float[Tensor, "*batch point d"]:
    """Points less their centre; 0 where there is none."""
    there = present[..., None].to(points)
    centre = (points * there).sum(-2, keepdim=True) / there.sum(-2, keepdim=True).clamp(min=1)
    return (points - centre) * there
