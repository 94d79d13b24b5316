"""How a manifold has moved between two models, with an interval over prompts and a null."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.circuits import Manifold
from circuitkeep.functional.manifolds import (
    TransformDrift,
    check_span,
    drift_of_products,
    fit_similarity,
    shape_of_products,
    spreads,
    transform_drift,
)
from circuitkeep.manifolds.rows import ManifoldRows

FIGURES = TransformDrift._fields
DRAWS = 200
_AT_ONCE = 50
_ANGLES = {"rotation": math.pi, "tilt": math.pi / 2}
"""With the largest that there is."""
_MOST = ("shape", "place")


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, which holds it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ManifoldDrift:
    """How a manifold has moved: see `TransformDrift`, whose figures these are.

    Attributes:
        null: What there is of each between random halves of the base's own prompts, in all but one
            of twenty draws: at most, or for shape and place at least.
    """

    shape: Estimate
    place: Estimate
    translation: Estimate
    log_scale: Estimate
    rotation: Estimate
    tilt: Estimate
    null: TransformDrift


def manifold_drift(
    base: ManifoldRows, now: ManifoldRows, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> ManifoldDrift:
    """Every figure with its interval, and the null.

    Args:
        base, now: One manifold in two models, on the same prompts.
        draws: Of prompts, for the intervals and for the null.
        level: Of the intervals and of the null.
        seed: Of the draws.

    Raises:
        ValueError: If the prompts are fewer than two or not the same, or the points do not span
            the manifold's dimensions.
    """
    estimates = drift_estimates(base, now, draws, level, seed)
    return ManifoldDrift(**estimates, null=drift_of_halves(base, draws, level, seed))


def drift_values(
    manifolds: Iterable[Manifold],
    base: Mapping[str, Float[Tensor, "class d"]],
    now: Mapping[str, Float[Tensor, "class d"]],
) -> dict[str, float]:
    """``manifold/NAME/FIGURE`` -> the figure, of every manifold whose class means the base has.

    As measured, which noise makes worse: see `drift_estimates` for what it takes off.
    """
    return {
        f"manifold/{one.name}/{figure}": value.item()
        for one in manifolds
        if one.name in base
        for figure, value in transform_drift(base[one.name], now[one.name], one.dimensions)
        ._asdict()
        .items()
    }


def drift_estimates(
    base: ManifoldRows, now: ManifoldRows, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    r"""Every figure with its interval; see `manifold_drift`.

    Noise of the prompts adds to the squares of all distances. So what it adds to the scalar
    products of the points is estimated, by how much each prompt moves every point, and taken off
    before the figures are made of them; not for the shape, to whose fit it adds otherwise.

    For the interval the prompts get random weights, the same in both models: those of a flat
    Dirichlet distribution, under which no class is ever without a sample. They add that noise once
    more, so it is taken off twice. The interval is that of the middle draws; for shape, rotation
    and tilt, which noise makes worse all the same, the basic one: twice the figure less the draws,
    of angles the squares. It is made to hold the figure. What the words of the prompts add may be
    of one shape in both models, and hide that the manifold's own has changed: the lower end of the
    shape's interval is as low as that makes possible.

    Source:
        Rubin 1981, "The Bayesian bootstrap", Annals of Statistics 9(1); Davison &
        Hinkley 1997, "Bootstrap Methods and their Application", chapter 5.2.

    Raises:
        ValueError: See `manifold_drift`.
    """
    _check_rows(base)
    if base.sums.shape != now.sums.shape or not torch.equal(base.counts, now.counts):
        raise ValueError(
            f"manifold {base.manifold.name!r}: the two models were measured on other prompts "
            f"({len(base.counts)} and {len(now.counts)}); measure both on the same"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(draws, len(base.counts), dtype=torch.float64)
    weights.exponential_(generator=generator)
    for one in (base, now):
        check_span(one.means(), base.manifold.dimensions)
    noise = _noise(base, now)

    def figures(part: Float[Tensor, "draw row"], times: int) -> TransformDrift:
        points = torch.cat([_means(base, part), _means(now, part)], 1)
        products = points @ points.mT
        found = drift_of_products(products - times * noise, base.manifold.dimensions)
        return found._replace(shape=shape_of_products(products))

    points = torch.cat([base.means(), now.means()])
    products = points @ points.mT
    own = figures(torch.ones_like(weights[:1]), 1)
    drawn = _joined([figures(part, 2) for part in weights.split(_AT_ONCE)])
    ends = weights.new_tensor([(1 - level) / 2, (1 + level) / 2])
    found = {}
    for name, figure, values in zip(FIGURES, own, drawn, strict=True):
        value = figure.item()
        low, high = values.quantile(ends).tolist()
        if name == "shape":
            high, low = (min(2 * value - end, 1.0) for end in (low, high))
            low = _if_noise_is_shared(low, noise, products)
        elif name in _ANGLES:
            high, low = (2 * value**2 - end**2 for end in (low, high))
            low, high = (min(math.sqrt(max(end, 0.0)), _ANGLES[name]) for end in (low, high))
        found[name] = Estimate(value, min(low, value), max(high, value))
    return found


def drift_of_halves(
    base: ManifoldRows, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> TransformDrift:
    """The figures between random halves of the prompts: what there is of them without any drift.

    A class that a half has no sample of is taken to lie at the centre of the others in both.

    Returns:
        Of each figure the quantile that a share `level` of the draws does not go beyond.

    Raises:
        ValueError: For fewer than two prompts.
    """
    _check_rows(base)
    rows = len(base.counts)
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(draws, rows, generator=generator).argsort(1) < rows // 2
    drawn = _joined([_between(base, part) for part in first.split(_AT_ONCE)])
    drawn = drawn._replace(log_scale=drawn.log_scale.abs())
    return TransformDrift(
        *(
            values.quantile(1 - level if name in _MOST else level)
            for name, values in drawn._asdict().items()
        )
    )


def moved_classes(base: ManifoldRows, now: ManifoldRows, strict: bool) -> list[tuple[float, float]]:
    """The value of each class and how far it has moved, in units of the base's radius; far first.

    Args:
        base, now: One manifold in two models.
        strict: From where it was; else from where the best similarity transform takes it.
    """
    x, y = base.means(), now.means()
    centred = x - x.mean(0)
    if not strict:
        fit = fit_similarity(x, y)
        # Taken back, so that the unit is the base's.
        y = (y - y.mean(0)) @ fit.written @ fit.read.mT / fit.scale
        x = centred
    far = (y - x).norm(dim=1) / centred.square().sum(1).mean().sqrt()
    order = far.argsort(descending=True, stable=True).tolist()
    return [(base.manifold.value_of(number), far[number].item()) for number in order]


def _check_rows(base: ManifoldRows) -> None:
    if len(base.counts) < 2:
        raise ValueError(
            f"the drift of manifold {base.manifold.name!r} needs at least 2 prompts, to know their "
            f"noise; got {len(base.counts)}"
        )


def _means(rows: ManifoldRows, weights: Float[Tensor, "draw row"]) -> Float[Tensor, "draw class d"]:
    totals = torch.einsum("wr,rcd->wcd", weights, rows.sums)
    return totals / (weights @ rows.counts.double())[..., None]


def _noise(base: ManifoldRows, now: ManifoldRows) -> Float[Tensor, "points points"]:
    """What the choice of prompts adds to the scalar products of all points, on average."""
    counts = base.counts.double()
    rows = len(counts)
    # How each prompt moves each point.
    moves = torch.cat(
        [
            (one.sums - counts[..., None] * one.means()) / counts.sum(0)[:, None]
            for one in (base, now)
        ],
        1,
    )
    return torch.einsum("rpd,rqd->pq", moves, moves) * rows / (rows - 1)


def _if_noise_is_shared(
    shape: float, noise: Float[Tensor, "p p"], products: Float[Tensor, "p p"]
) -> float:
    r"""The shape that is kept if what the choice of prompts adds is of the same shape in both.

    With the share :math:`f` of it, :math:`\sqrt{shape} = (1 - f) \sqrt{kept} + f`: where it is most
    of what is seen, little is known of the rest.
    """
    shares = [
        (part / whole).clamp(max=1).item()
        for part, whole in zip(spreads(noise), spreads(products), strict=True)
    ]
    shared = min(math.sqrt(shares[0] * shares[1]), 1 - 1e-9)
    return (max(math.sqrt(max(shape, 0.0)) - shared, 0.0) / (1 - shared)) ** 2


def _between(base: ManifoldRows, first: Bool[Tensor, "draw row"]) -> TransformDrift:
    halves = [_means(base, half.double()) for half in (first, ~first)]
    known = ~(halves[0] + halves[1]).isnan().any(-1, keepdim=True)
    filled = [
        half.where(known, half.where(known, 0).sum(1, keepdim=True) / known.sum(1, keepdim=True))
        for half in halves
    ]
    points = torch.cat(filled, 1)
    return drift_of_products(points @ points.mT, base.manifold.dimensions)


def _joined(parts: list[TransformDrift]) -> TransformDrift:
    return TransformDrift(*map(torch.cat, zip(*parts, strict=True)))
