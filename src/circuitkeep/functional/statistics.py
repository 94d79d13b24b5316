"""Intervals for what is reported."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mean_ratio_interval(
    now: Float[Tensor, "group row"],
    base: Float[Tensor, "group row"],
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    r"""Bootstrap interval of a ratio of means, rows drawn in pairs.

    .. math:: \frac{1}{G} \sum_g \frac{\operatorname{mean}_r \mathrm{now}_{gr}}
              {\operatorname{mean}_r \mathrm{base}_{gr}}

    NaN entries are left out of their mean. Draws in which a mean is missing or a base is not
    positive are left out of the interval. The draws are always the same.

    Returns:
        The percentile interval; NaN for fewer than two rows, or if a mean of `base` is not
        positive.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    rows = now.shape[1]
    nothing = (float("nan"), float("nan"))
    if rows < 2 or not bool((base.nanmean(1) > 0).all()):
        return nothing
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(rows, (draws, rows), generator=generator)
    numerator, denominator = (x.double()[:, drawn].nanmean(-1) for x in (now, base))
    ratios = (numerator / denominator.where(denominator > 0, torch.nan)).mean(0)
    tail = (1 - level) / 2
    low, high = ratios.nanquantile(torch.tensor([tail, 1 - tail], dtype=ratios.dtype)).tolist()
    return low, high
