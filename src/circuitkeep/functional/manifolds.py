"""Where the values of a variable lie in a space: shape, and how one such set turns into another.

A manifold is given by the mean activation of every class of the variable (every count, position,
width), in the order of the classes. Rotating the whole space changes no number here but those that
are vectors in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.weights import in_float64


class Similarity(NamedTuple):
    r"""The best way from one set of points to another by scale, rotation and translation.

    .. math:: y_i \approx c\,(x_i - \bar x)\,U V^\top + \bar y

    Attributes:
        scale: :math:`c`, 0 or more.
        read: :math:`U`: an orthonormal basis of the points' space, as far as it matters.
        written: :math:`V`: what the rotation makes of it.
        translation: :math:`\bar y - \bar x`.
        residual: Share of the variance of ``y`` that is left, from 0 to 1.
    """

    scale: Float[Tensor, "*draw"]
    read: Float[Tensor, "*draw d r"]
    written: Float[Tensor, "*draw d r"]
    translation: Float[Tensor, "*draw d"]
    residual: Float[Tensor, "*draw"]


class TransformDrift(NamedTuple):
    """How a manifold has moved.

    Attributes:
        shape: Share of its variance that the best similarity transform explains, from 0 to 1: 1 if
            it is the same up to scale, rotation and translation.
        place: 1 less the mean squared distance of its points from where they were, in units of the
            base's variance: 1 if nothing has moved; without a lower limit.
        translation: Distance of the centres, in units of the base's radius (root mean square
            distance of its points from their centre).
        log_scale: Natural logarithm of how much larger it has become.
        rotation: Largest angle in radians by which it turned within its own subspace, from 0 to
            pi, once the subspaces are laid upon each other on the shortest way.
        tilt: Largest angle between its subspace now and at the base, from 0 to pi / 2.
    """

    shape: Float[Tensor, "*draw"]
    place: Float[Tensor, "*draw"]
    translation: Float[Tensor, "*draw"]
    log_scale: Float[Tensor, "*draw"]
    rotation: Float[Tensor, "*draw"]
    tilt: Float[Tensor, "*draw"]


def dimension(points: Float[Tensor, "point d"], share: float = 0.95) -> int:
    """Principal components that it takes to hold a share of the points' variance.

    Returns:
        0 for points that are all the same.
    """
    variances = _variances(points)
    total = variances.sum()
    if total == 0:
        return 0
    return int((variances.cumsum(0) / total < share * (1 - 1e-12)).sum()) + 1


def fit_similarity(
    x: Float[Tensor, "*draw point d"], y: Float[Tensor, "*draw point d"]
) -> Similarity:
    """Fit scale, rotation (or reflection) and translation from ``x`` to ``y``, point by point.

    Raises:
        ValueError: If the points of one set are all the same.

    Source:
        Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem",
        Psychometrika 31; with scale and translation, Gower 1975, Psychometrika 40.
    """
    wide, (x, y) = in_float64(x, y)
    centres = x.mean(-2), y.mean(-2)
    from_x, from_y = x - centres[0][..., None, :], y - centres[1][..., None, :]
    sizes = from_x.square().sum((-2, -1)), from_y.square().sum((-2, -1))
    if not (sizes[0].all() and sizes[1].all()):
        raise ValueError("the points of a manifold are all the same: there is nothing to fit")
    # SVD of the small matrix: the points' own subspaces are all that matters.
    left, right = torch.linalg.qr(from_x.mT), torch.linalg.qr(from_y.mT)
    inner = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    total = inner.S.sum(-1)
    return Similarity(
        (total / sizes[0]).to(wide),
        (left.Q @ inner.U).to(wide),
        (right.Q @ inner.Vh.mT).to(wide),
        (centres[1] - centres[0]).to(wide),
        (1 - total.square() / (sizes[0] * sizes[1])).clamp(min=0).to(wide),
    )


def transform_drift(
    base: Float[Tensor, "*draw point d"], now: Float[Tensor, "*draw point d"], dimensions: int
) -> TransformDrift:
    """How a manifold has moved from ``base`` to ``now``, point by point.

    Args:
        base, now: The same classes.
        dimensions: Of its subspace: that many principal components of each are compared.

    Raises:
        ValueError: If the points of one set do not span that many dimensions.
    """
    wide, (x, y) = in_float64(base, now)
    for points in (x, y):
        check_span(points, dimensions)
    both = torch.cat([x, y], -2)
    found = drift_of_products(both @ both.mT, dimensions)
    return TransformDrift(*(figure.to(wide) for figure in found))


def drift_of_products(
    products: Float[Tensor, "*draw points points"], dimensions: int
) -> TransformDrift:
    """`transform_drift`, from the scalar products of the points with each other.

    Args:
        products: Of the points of the base and then those of the model now, in float64. They may
            be estimates that are no scalar products of any points: where a set has no positive
            variance then, what is measured by that is NaN.
        dimensions: See `transform_drift`; no more than the points span.
    """
    count = products.shape[-1] // 2
    x, y, between = _blocks(products)
    apart = x + y - between - between.mT
    x, y, between = _blocks(_centred(products))
    sizes = [size.where(size > 0, torch.nan) for size in (_trace(x), _trace(y))]
    (widths_x, axes_x), (widths_y, axes_y) = (_widest(one, dimensions) for one in (x, y))
    # Cosines of the directions of one subspace with those of the other.
    overlap = (axes_x.mT @ between @ axes_y) / (widths_x.mT * widths_y)
    # The shortest way from one subspace to the other takes the frames to each other as nearly as
    # can be: the polar factor of their overlap.
    shortest = torch.linalg.svd(overlap.mT)
    inside_x, inside_y = axes_x * widths_x, axes_y * widths_y
    turn = torch.linalg.svd(inside_x.mT @ inside_y @ shortest.U @ shortest.Vh)
    return TransformDrift(
        shape_of_products(products),
        1 - _trace(apart) / sizes[0],
        (apart.mean((-2, -1)).clamp(min=0) / (sizes[0] / count)).sqrt(),
        0.5 * (sizes[1] / sizes[0]).log(),
        torch.linalg.eigvals(turn.U @ turn.Vh).angle().abs().amax(-1),
        shortest.S.amin(-1).clamp(max=1).acos(),
    )


def shape_of_products(products: Float[Tensor, "*draw points points"]) -> Float[Tensor, "*draw"]:
    """`TransformDrift.shape` alone; see `drift_of_products`."""
    x, y, _ = _blocks(_centred(products))
    # The points in their own axes: their rotation does not matter.
    turned = [
        axes * squares.clamp(min=0).sqrt()[..., None, :]
        for squares, axes in map(torch.linalg.eigh, (x, y))
    ]
    shared = torch.linalg.svdvals(turned[0].mT @ turned[1]).sum(-1)
    return (shared.square() / (_trace(x) * _trace(y))).clamp(max=1)


def spreads(products: Float[Tensor, "*draw points points"]) -> tuple[Tensor, Tensor]:
    """Sum of the squared distances from the centre, of the base's points and of those now."""
    x, y, _ = _blocks(_centred(products))
    return _trace(x), _trace(y)


def _centred(
    products: Float[Tensor, "*draw points points"],
) -> Float[Tensor, "*draw points points"]:
    """The products of the points as seen from the centre of their own set."""
    count = products.shape[-1] // 2
    own = torch.eye(count).to(products) - 1 / count
    whole = torch.block_diag(own, own)
    return whole @ products @ whole


def _blocks(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Within the first half, within the second, and between them."""
    count = products.shape[-1] // 2
    first, second = products[..., :count, :], products[..., count:, :]
    return first[..., :count], second[..., count:], first[..., count:]


def _trace(square: Float[Tensor, "*draw point point"]) -> Float[Tensor, "*draw"]:
    return square.diagonal(dim1=-2, dim2=-1).sum(-1)


def check_span(points: Float[Tensor, "*draw point d"], dimensions: int) -> None:
    """Refuse a subspace of more dimensions than points span.

    Raises:
        ValueError: Naming how many they do.
    """
    lengths = torch.linalg.svdvals(points - points.mean(-2, keepdim=True))
    spanned = int((lengths > 1e-7 * lengths[..., :1]).sum(-1).min())
    if dimensions < 1 or dimensions > spanned:
        raise ValueError(
            f"dimensions={dimensions}: the points span {spanned}; choose 1 or more, up to that"
        )


def _widest(
    products: Float[Tensor, "*draw point point"], dimensions: int
) -> tuple[Float[Tensor, "*draw 1 kept"], Float[Tensor, "*draw point kept"]]:
    """Lengths along the widest principal axes, and each point's share in them."""
    squares, axes = torch.linalg.eigh(products)
    widths = squares.maximum(1e-14 * squares[..., -1:]).sqrt()[..., -dimensions:]
    return widths[..., None, :], axes[..., -dimensions:]


def _variances(points: Float[Tensor, "point d"]) -> Float[Tensor, " component"]:
    return torch.linalg.svdvals((points - points.mean(0)).double()).square()
