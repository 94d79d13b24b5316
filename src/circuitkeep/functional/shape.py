r"""What a manifold looks like, from the inner products of its points alone.

All functions but the probe take the inner products of the class means about their centre,
:math:`G_{ij} = \langle x_i - \bar x, x_j - \bar x \rangle`. Those of one set of means hold their
noise as well; `signal_gram` of two halves of the prompts does not, on average, because the noise of
the halves has nothing in common. Nothing here depends on the basis of the space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that `probe_error` chooses from, in units of the mean variance per direction."""


def signal_gram(
    first: Float[Tensor, "point d"], second: Float[Tensor, "point d"]
) -> Float[Tensor, "point point"]:
    r"""Inner products of the points about their centre, without the noise of the means.

    .. math:: \tfrac12 (A B^\top + B A^\top)

    for the centred means :math:`A, B` of two halves of the prompts. With the same means twice it is
    their plain Gram matrix.

    Returns:
        Symmetric; with two halves its smaller eigenvalues may be negative, and their sum is that of
        the points without noise on average.

    Source:
        The idea of Stringer et al. 2019, "High-dimensional geometry of population responses in
        visual cortex", Nature 571, with inner products in the place of components.
    """
    a, b = ((points - points.mean(0)).double() for points in (first, second))
    product = a @ b.mT
    return ((product + product.mT) / 2).to(first)


def gram_dimension(gram: Float[Tensor, "point point"], share: float = 0.95) -> int:
    """Principal components that it takes to hold a share of the points' variance.

    Of a `signal_gram` of halves it tends to be too small where there is much noise, because a part
    of the noise falls on the largest components; `circuitkeep.functional.manifolds.dimension` of
    the means is too large.

    Returns:
        0 where there is no variance but noise.
    """
    values = torch.linalg.eigvalsh(gram.double()).flip(0)
    total = values.sum()
    if total <= 0:
        return 0
    return int((values.cumsum(0) < share * total * (1 - 1e-12)).sum().clamp(max=len(gram) - 1)) + 1


def mean_turn(gram: Float[Tensor, "point point"]) -> float:
    r"""Angle in radians between a step from a point to the next and the step after it.

    .. math:: \arccos \frac{\sum_i \langle s_i, s_{i+1} \rangle}
        {\sqrt{\sum_i |s_i|^2 \sum_i |s_{i+1}|^2}}

    so that longer steps count for more.

    Returns:
        0 along a straight line; :math:`2 \pi / 3` for points that have nothing to do with each
        other. NaN where there are no steps but noise.

    Raises:
        ValueError: If there are fewer than three points.
    """
    if len(gram) < 3:
        raise ValueError(f"{len(gram)} points: a turn needs three")
    steps = gram.double().diff(dim=0).diff(dim=1)
    sizes = steps.diagonal()
    square = sizes[:-1].sum() * sizes[1:].sum()
    if sizes[:-1].sum() <= 0 or sizes[1:].sum() <= 0:
        return torch.nan
    return float((steps.diagonal(1).sum() / square.sqrt()).clamp(-1, 1).acos())


def similarity_by_distance(gram: Float[Tensor, "point point"]) -> Float[Tensor, " distance"]:
    r"""How alike points are that many classes apart.

    .. math:: c_k = \frac{\overline{G_{i,i+k}}}{\overline{\sqrt{G_{ii} G_{i+k,i+k}}}}

    A straight or gently bent line falls once; a rippled one falls below 0 and rises again.

    Returns:
        From distance 0 (1 by definition) up to half of the points, rounded down, so that each is a
        mean over half of them at least. NaN where there is no variance but noise.
    """
    gram = gram.double()
    sizes = gram.diagonal().clamp(min=0).sqrt()
    found = []
    for distance in range(len(gram) // 2 + 1):
        stop = len(gram) - distance
        scale = (sizes[:stop] * sizes[distance:]).mean()
        found.append(gram.diagonal(distance).mean() / scale if scale > 0 else scale * torch.nan)
    return torch.stack(found)


def distance_share(gram: Float[Tensor, "point point"]) -> float:
    """Share of the variance of the points' cosines that their distance alone explains.

    Near 1 for a manifold that looks the same from each of its points, such as a circle or a helix.

    Returns:
        From 0 to 1, over the pairs of different points; NaN if a point has no length but noise.
    """
    gram = gram.double()
    sizes = gram.diagonal()
    if not bool((sizes > 0).all()):
        return torch.nan
    cosines = gram / (sizes[:, None] * sizes[None]).sqrt()
    rows, columns = torch.triu_indices(len(gram), len(gram), 1)
    values, distances = cosines[rows, columns], columns - rows - 1
    means = torch.zeros(len(gram) - 1, dtype=values.dtype).index_add_(0, distances, values)
    means = means / torch.bincount(distances, minlength=len(gram) - 1)
    total = (values - values.mean()).square().sum()
    if total == 0:
        return 1.0
    return float(1 - (values - means[distances]).square().sum() / total)


class Ripple(NamedTuple):
    """Where the likeness of points first stops falling with their distance.

    Attributes:
        distance: In classes; None where it falls all the way.
        depth: The similarity there: below 0 where the points have turned away from each other.
        rise: How much higher it gets after that.
    """

    distance: int | None
    depth: float
    rise: float


def ripple(similarity: Float[Tensor, " distance"]) -> Ripple:
    """The first dip of `similarity_by_distance`.

    Returns:
        With depth and rise of the last distance, and 0, where there is no dip.
    """
    rising = similarity[1:] > similarity[:-1]
    if not bool(rising.any()):
        return Ripple(None, float(similarity[-1]), 0.0)
    place = int(rising.int().argmax())
    depth = similarity[place]
    return Ripple(place, float(depth), float(similarity[place:].max() - depth))


def gram_fourier_shares(gram: Float[Tensor, "point point"]) -> Float[Tensor, " frequency"]:
    """Share of the points' variance at each frequency along their order, from inner products.

    Returns:
        Share at each whole number of cycles over all points, from 1 up; with halves, what is only
        noise may be slightly negative.
    """
    spectrum = torch.fft.fft(torch.fft.fft(gram.double(), dim=0).conj(), dim=1).real.diagonal()
    power = spectrum[1:]
    half = len(gram) // 2
    shares = power[:half].clone()
    # A frequency and its mirror are one; the middle one of an even number has no mirror.
    mirrored = (len(gram) - 1) // 2
    shares[:mirrored] = shares[:mirrored] + power.flip(0)[:mirrored]
    return (shares / power.sum().clamp(min=1e-300)).to(gram)


class ProbeError(NamedTuple):
    """How well a straight line in the stream tells the value, on prompts that it has not seen.

    Attributes:
        rmse: Root mean square error, in the variable's unit.
        guessing: That of the mean of the training prompts' values.
        ridge: The strength that was chosen, in units of the mean variance per direction.
    """

    rmse: float
    guessing: float
    ridge: float


def probe_error(
    values: Float[Tensor, "sample d"],
    labels: Float[Tensor, " sample"],
    prompts: Int[Tensor, " sample"],
    seed: int = 0,
) -> ProbeError:
    """Error of a linear probe (ridge regression) on held-out prompts.

    Half of the prompts are learned from, a quarter chooses the ridge, a quarter is tested on: no
    prompt stands in two of them.

    Raises:
        ValueError: If there are fewer than four prompts.
    """
    known, place = prompts.unique(return_inverse=True)
    if len(known) < 4:
        raise ValueError(f"{len(known)} prompts: a probe needs four or more; give more rows")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    part = torch.empty(len(known), dtype=torch.long)
    part[order] = torch.arange(len(known)) * 4 // len(known)
    part = part.to(prompts.device)[place]
    x, y = values.double(), labels.double()
    learned, chosen, tested = part < 2, part == 2, part == 3
    centre, middle = x[learned].mean(0), y[learned].mean()
    centred = x[learned] - centre
    variances, directions = torch.linalg.eigh(centred.mT @ centred / len(centred))
    variances = variances.clamp(min=0)
    aim = directions.mT @ (centred.mT @ (y[learned] - middle)) / len(centred)

    def error(ridge: float, where: Tensor) -> float:
        strength = (ridge * variances.mean()).clamp(min=1e-300)
        found = (x[where] - centre) @ (directions @ (aim / (variances + strength))) + middle
        return float((found - y[where]).square().mean().sqrt())

    ridge = min(RIDGES, key=lambda ridge: error(ridge, chosen))
    guessing = float((y[tested] - middle).square().mean().sqrt())
    return ProbeError(error(ridge, tested), guessing, ridge)
