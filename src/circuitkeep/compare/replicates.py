"""Intervals over prompts and training seeds at once.

Every seed's model answers the same prompts, so values are crossed: a seed may be good on all
prompts, a prompt hard for all seeds. An interval over prompts alone says how the models at hand do
on other prompts, not what another training would give; a bootstrap of both is too narrow for few
seeds (it covers 75% to 86% with 3 where seeds differ: ``tests/compare/test_replicates.py``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float
from scipy import stats
from torch import Tensor


class Estimate(NamedTuple):
    """A mean over seeds and prompts, with its interval.

    Attributes:
        mean: Over both.
        low: Lower bound.
        high: Upper bound; bounds are NaN for a single value.
        p: Two-sided p-value of the mean being 0; NaN for a single value.
        seeds: How many seeds.
        prompts: How many prompts, those left out for a NaN not counted.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    prompts: int


def crossed_mean(values: Float[Tensor, "seed prompt"], level: float = 0.95) -> Estimate:
    r"""Mean of crossed values, with an interval that holds for other seeds and other prompts.

    With mean squares :math:`M_S, M_P, M_E` of seeds, prompts and the rest, the variance of the mean
    of :math:`S` by :math:`P` values is :math:`(M_S + M_P - M_E) / SP`, and Student's t has
    :math:`\nu = (M_S + M_P - M_E)^2 / (M_S^2 / \nu_S + M_P^2 / \nu_P + M_E^2 / \nu_E)` degrees of
    freedom. Where that variance comes out below that of seeds or of prompts alone, the larger of
    those is taken with its own degrees of freedom. A single seed says nothing about others: the
    interval is then over prompts alone, and a single prompt's over seeds alone.

    A prompt with a NaN in any seed is left out.

    Raises:
        ValueError: If every prompt has a NaN.

    Source:
        Satterthwaite 1946, Biometrics Bulletin 2(6); Searle, Casella & McCulloch 1992, Variance
        Components, chapter 4 (two-way crossed random effects).
    """
    kept = values.double()[:, ~values.isnan().any(0)]
    seeds, prompts = kept.shape
    if not kept.numel():
        raise ValueError("no prompt has a value in every seed, so there is no mean")
    mean = kept.mean()
    nan = float("nan")
    if seeds == prompts == 1:
        return Estimate(mean.item(), nan, nan, nan, seeds, prompts)
    variance, degrees = _spread(kept, mean)
    error = math.sqrt(variance / kept.numel())
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * error
    # Values that are all alike have no spread to divide by.
    p = 2 * stats.t.sf(abs(mean.item()) / error, degrees) if error else float(mean.item() == 0)
    return Estimate(mean.item(), mean.item() - half, mean.item() + half, float(p), seeds, prompts)


def crossed_ratio(
    now: Float[Tensor, "seed prompt"], base: Float[Tensor, " prompt"], level: float = 0.95
) -> Estimate:
    r"""Ratio of the mean of `now` to that of `base`, measured on the same prompts.

    The interval is that of the linearized ratio :math:`R = \bar y / \bar b`, whose value for a seed
    and a prompt is :math:`R + (y_{sp} - R\,b_p) / \bar b`. The p-value is of the ratio being 1.

    Returns:
        NaN where the base's mean is not positive, so that a ratio says nothing.

    Source:
        Cochran 1977, Sampling Techniques, chapter 6 (ratio estimators).
    """
    known = ~(now.isnan().any(0) | base.isnan())
    now, base = now.double()[:, known], base.double()[known]
    seeds, prompts = now.shape
    below = base.mean().item() if prompts else float("nan")
    if not below > 0:
        nan = float("nan")
        return Estimate(nan, nan, nan, nan, seeds, prompts)
    share = now.mean() / below
    found = crossed_mean((now - share * base) / below + share - 1, level)
    mean = share.item()
    return Estimate(mean, found.low + 1, found.high + 1, found.p, seeds, prompts)


def _spread(values: Float[Tensor, "seed prompt"], mean: Float[Tensor, ""]) -> tuple[float, float]:
    """Variance of the mean, times the number of values; and its degrees of freedom."""
    seeds, prompts = values.shape
    by_seed, by_prompt = values.mean(1), values.mean(0)
    if seeds == 1 or prompts == 1:
        return values.var().item(), float(values.numel() - 1)
    of_seeds, of_prompts = seeds - 1, prompts - 1
    of_rest = of_seeds * of_prompts
    seed = prompts * (by_seed - mean).square().sum().item() / of_seeds
    prompt = seeds * (by_prompt - mean).square().sum().item() / of_prompts
    rest = values - by_seed[:, None] - by_prompt + mean
    error = rest.square().sum().item() / of_rest
    whole = seed + prompt - error
    if whole < max(seed, prompt):
        return (seed, float(of_seeds)) if seed >= prompt else (prompt, float(of_prompts))
    if not whole:
        return 0.0, float(of_rest)
    degrees = whole**2 / (seed**2 / of_seeds + prompt**2 / of_prompts + error**2 / of_rest)
    return whole, degrees
