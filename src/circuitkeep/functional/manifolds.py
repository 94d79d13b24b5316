"""Where the values of a variable lie in a space: shape, and how one such set turns into another.

A manifold is given by the mean activation of every class of the variable (every count, position,
width), in the order of the classes. Rotating the whole space changes no number here but those that
are vectors in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.functional.transforms import principal_angles
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

    scale: Float[Tensor, ""]
    read: Float[Tensor, "d r"]
    written: Float[Tensor, "d r"]
    translation: Float[Tensor, " d"]
    residual: Float[Tensor, ""]


class TransformDrift(NamedTuple):
    """How a manifold has moved.

    Attributes:
        translation: Distance of the centres, in units of the base's radius (root mean square
            distance of its points from their centre).
        log_scale: Natural logarithm of how much larger it has become.
        rotation: Largest angle in radians by which it turned within its own subspace, from 0 to
            pi, once the subspaces are laid upon each other on the shortest way.
        tilt: Largest angle between its subspace now and at the base, from 0 to pi / 2.
        residual: Share of its variance that no similarity transform explains.
    """

    translation: Float[Tensor, "*draw"]
    log_scale: Float[Tensor, "*draw"]
    rotation: Float[Tensor, "*draw"]
    tilt: Float[Tensor, "*draw"]
    residual: Float[Tensor, "*draw"]


def class_means(
    values: Float[Tensor, "sample d"], labels: Int[Tensor, " sample"], classes: int
) -> Float[Tensor, "point d"]:
    """The mean of every class.

    Raises:
        ValueError: If a class has no sample, or a label is out of range.
    """
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"labels run from 0 to {classes - 1}, got {int(labels.max())}")
    counts = torch.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(f"class {int(counts.argmin())} has no sample; give more rows")
    totals = values.new_zeros(classes, values.shape[1]).index_add_(0, labels, values)
    return totals / counts[:, None]


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


def turning_angles(points: Float[Tensor, "point d"]) -> Float[Tensor, " angle"]:
    """Angles in radians between each step from a point to the next and the step after it.

    0 along a straight line; a rippled manifold keeps turning.
    """
    steps = torch.nn.functional.normalize(points.diff(dim=0), dim=1)
    return (steps[1:] * steps[:-1]).sum(1).clamp(-1, 1).acos()


def fourier_shares(points: Float[Tensor, "point d"]) -> Float[Tensor, " frequency"]:
    """Share of the points' variance at each whole number of cycles over all of them, from 1 up."""
    centred = (points - points.mean(0)).double()
    power = torch.fft.rfft(centred, dim=0).abs().square().sum(1)
    # All but the highest of an even number stand for two.
    weights = torch.full_like(power, 2.0)
    if len(points) % 2 == 0:
        weights[-1] = 1.0
    power = (weights * power)[1:]
    return (power / power.sum().clamp(min=1e-300)).to(points)


def fit_similarity(x: Float[Tensor, "point d"], y: Float[Tensor, "point d"]) -> Similarity:
    """Fit scale, rotation (or reflection) and translation from ``x`` to ``y``, point by point.

    Raises:
        ValueError: If the points of one set are all the same.

    Source:
        Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem",
        Psychometrika 31; with scale and translation, Gower 1975, Psychometrika 40.
    """
    wide, (x, y) = in_float64(x, y)
    from_x, from_y = x - x.mean(0), y - y.mean(0)
    sizes = from_x.square().sum(), from_y.square().sum()
    if not (sizes[0] > 0 and sizes[1] > 0):
        raise ValueError("the points of a manifold are all the same: there is nothing to fit")
    # SVD of the small matrix: the points' own subspaces are all that matters.
    left, right = torch.linalg.qr(from_x.mT), torch.linalg.qr(from_y.mT)
    inner = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    total = inner.S.sum()
    return Similarity(
        (total / sizes[0]).to(wide),
        (left.Q @ inner.U).to(wide),
        (right.Q @ inner.Vh.mT).to(wide),
        (y.mean(0) - x.mean(0)).to(wide),
        (1 - total.square() / (sizes[0] * sizes[1])).clamp(min=0).to(wide),
    )


def transform_drift(
    base: Float[Tensor, "point d"], now: Float[Tensor, "point d"], dimensions: int
) -> TransformDrift:
    """How a manifold has moved from ``base`` to ``now``, point by point.

    Args:
        base, now: The same classes.
        dimensions: Of its subspace: that many principal components of each are compared.

    Raises:
        ValueError: If the points of one set do not span that many dimensions.
    """
    wide, (x, y) = in_float64(base, now)
    centres = x.mean(0), y.mean(0)
    x, y = x - centres[0], y - centres[1]
    frames = _frame(x, dimensions), _frame(y, dimensions)
    # The shortest way from one subspace to the other takes the frames to each other as nearly as
    # can be: the polar factor of their overlap.
    shared = torch.linalg.svd(frames[1].mT @ frames[0])
    inside_x = x @ frames[0]
    inside_y = y @ frames[1] @ shared.U @ shared.Vh
    turn = torch.linalg.svd(inside_x.mT @ inside_y)
    angles = torch.linalg.eigvals(turn.U @ turn.Vh).angle().abs()
    sizes = x.square().sum(), y.square().sum()
    whole = fit_similarity(base, now)
    radius = (sizes[0] / len(x)).sqrt()
    return TransformDrift(
        ((centres[1] - centres[0]).norm() / radius).to(wide),
        (0.5 * (sizes[1] / sizes[0]).log()).to(wide),
        angles.max().to(wide),
        principal_angles(frames[0], frames[1]).max().to(wide),
        whole.residual.to(wide),
    )


def _variances(points: Float[Tensor, "point d"]) -> Float[Tensor, " component"]:
    return torch.linalg.svdvals((points - points.mean(0)).double()).square()


def _frame(centred: Float[Tensor, "point d"], dimensions: int) -> Float[Tensor, "d component"]:
    found = torch.linalg.svd(centred, full_matrices=False)
    least = 1e-9 * found.S[0]
    if dimensions < 1 or dimensions > int((least < found.S).sum()):
        raise ValueError(
            f"dimensions={dimensions}: the points span {int((least < found.S).sum())}; choose 1 or "
            "more, up to that"
        )
    return found.Vh[:dimensions].mT


def halves_drift(
    values: Float[Tensor, "sample d"],
    labels: Int[Tensor, " sample"],
    classes: int,
    dimensions: int,
    draws: int,
    seed: int,
) -> TransformDrift:
    """The drift between random halves of the same samples: what there is of it without any.

    Each class is split evenly, so that a half has half the samples: as noisy as two sets of that
    size.

    Returns:
        A figure per draw.

    Raises:
        ValueError: If a class has fewer than two samples.
    """
    counts = torch.bincount(labels, minlength=classes)
    if int(counts.min()) < 2:
        raise ValueError(
            f"class {int(counts.argmin())} has {int(counts.min())} samples: two halves need two"
        )
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        first = _alternating(labels.cpu(), generator).to(labels.device)
        halves = [class_means(values[h], labels[h], classes) for h in (first, ~first)]
        found.append(transform_drift(halves[0], halves[1], dimensions))
    return _stacked(found)


def drift_interval(
    base: tuple[Float[Tensor, "sample d"], Int[Tensor, " sample"]],
    now: tuple[Float[Tensor, "other d"], Int[Tensor, " other"]],
    classes: int,
    dimensions: int,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[TransformDrift, TransformDrift]:
    """Bootstrap interval of the drift, over samples drawn anew within every class.

    Noise makes every figure here larger, in the samples as in what is drawn of them; so the
    interval is the basic one, which takes that off again: twice the figure less the quantiles.

    Args:
        base, now: Values and labels.
        classes: Of the variable.
        dimensions: See `transform_drift`.
        draws: Of the bootstrap.
        level: Of the interval.
        seed: Of the draws.

    Returns:
        Lower and upper ends.

    Source:
        Davison & Hinkley 1997, "Bootstrap Methods and their Application", chapter 5.2.
    """
    generator = torch.Generator().manual_seed(seed)
    figure = transform_drift(
        class_means(base[0], base[1], classes), class_means(now[0], now[1], classes), dimensions
    )
    drawn = []
    for _ in range(draws):
        means = [
            class_means(values[index], labels[index], classes)
            for values, labels in (base, now)
            for index in [_drawn_anew(labels.cpu(), generator).to(labels.device)]
        ]
        drawn.append(transform_drift(means[0], means[1], dimensions))
    ends = (1 + level) / 2, (1 - level) / 2
    quantiles = [[part.double().quantile(end) for part in _stacked(drawn)] for end in ends]
    low, high = (
        TransformDrift(*(2 * own - q.to(own) for own, q in zip(figure, of_end, strict=True)))
        for of_end in quantiles
    )
    return low, high


def _stacked(drifts: list[TransformDrift]) -> TransformDrift:
    return TransformDrift(*(torch.stack(list(parts)) for parts in zip(*drifts, strict=True)))


def _alternating(
    labels: Int[Tensor, " sample"], generator: torch.Generator
) -> Bool[Tensor, " sample"]:
    """Every second sample of each class, in a random order."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    ordered = labels[order]
    starts = torch.searchsorted(ordered, ordered)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order] = (torch.arange(len(labels)) - starts) % 2 == 0
    return chosen


def _drawn_anew(
    labels: Int[Tensor, " sample"], generator: torch.Generator
) -> Int[Tensor, " sample"]:
    """As many samples of each class, with replacement."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    starts = torch.searchsorted(ordered, ordered)
    sizes = torch.searchsorted(ordered, ordered, right=True) - starts
    places = (torch.rand(len(labels), generator=generator) * sizes).long()
    return order[starts + places]
