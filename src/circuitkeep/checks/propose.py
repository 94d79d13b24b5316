r"""Thresholds that an unchanged model passes with a chosen chance, and what they then detect.

A check measures a mean over rows with a 95% interval around it. It passes if the interval's lower
end reaches the threshold, and fails if its upper end does not; between the two it is inconclusive
(`circuitkeep.checks.judge`). So all chances follow from how the two ends vary when the unchanged
model is measured on other rows. From :math:`R` such measurements a further one is predicted by
Student's t with :math:`R - 1` degrees of freedom and the spread :math:`s \sqrt{1 + 1/R}` around
their mean:

- The threshold is what the lower end stays above with the chance that is asked for; but no nearer
  to the value than a loss that is tolerated. Where rows vary little, a fine-tuning that changes a
  circuit by a hundredth would fail otherwise.
- A false alarm is an upper end below it. For a mean of many rows its chance is about
  :math:`\Phi(-(2 \cdot 1.96 + z))` where the threshold is passed with the chance
  :math:`\Phi(z)`: far less than the chance of not passing.
- A loss is detected once it has brought the upper end below the threshold with the power that is
  asked for; for a mean of many rows, from :math:`(2 \cdot 1.96 + z + z_\text{power})\,s` on, or
  from what is tolerated and :math:`(1.96 + z_\text{power})\,s` more.
  Assumed: the damaged model's rows vary as those of the unchanged one do.

Taking the ends as they were measured, rather than 1.96 standard deviations beside the value, covers
intervals that end at 0 or 1, and ends that vary with the value.

Source:
    The interval for one further draw: Hahn & Meeker 1991, Statistical Intervals, chapter 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from scipy import stats
from torch import Tensor

MISSED = 0.01
"""Chance that an unchanged model does not pass; in strict runs that is the false-alarm rate."""
TOLERATED = 0.1
"""Loss, as a share of the value, that no test should fail for."""
POWER = 0.9
"""With which the losses that are told are detected."""
DIGITS = 4


@dataclass(frozen=True)
class Proposal:
    """A threshold and what it is good for.

    Attributes:
        threshold: Rounded down to `DIGITS` significant digits.
        false_alarm: Chance that an unchanged model fails it.
        loss: The smallest loss that fails it with the power asked for, in the value's unit.
    """

    threshold: float
    false_alarm: float
    loss: float


def propose(
    value: Float[Tensor, " reseed"],
    low: Float[Tensor, " reseed"],
    high: Float[Tensor, " reseed"],
    *,
    missed: float = MISSED,
    tolerated: float = TOLERATED,
    power: float = POWER,
    least_spread: float = 0.0,
) -> Proposal:
    """Propose a threshold from reseeded measurements of an unchanged model.

    Args:
        value: What was measured, one per measurement.
        low, high: The ends of its interval.
        missed: Chance that an unchanged model does not pass.
        tolerated: Share of the value that the threshold is below it, at least.
        power: With which the loss is detected.
        least_spread: Standard deviation of an end, at least; see `unseen_spread`.

    Raises:
        ValueError: For fewer than 2 measurements, or chances outside (0, 1).
    """
    reseeds = len(value)
    check_settings(reseeds, missed, tolerated)
    if not 0 < power < 1:
        raise ValueError(f"power is a chance, between 0 and 1, got {power}")
    degrees = reseeds - 1
    wider = math.sqrt(1 + 1 / reseeds)
    spread_low, spread_high = (
        wider * max(end.double().std().item(), least_spread) for end in (low, high)
    )
    mean, bottom, top = (one.double().mean().item() for one in (value, low, high))
    nearest = bottom - float(stats.t.isf(missed, degrees)) * spread_low
    threshold = rounded_down(min(nearest, mean - tolerated * abs(mean)))
    # Ends that do not vary do not cross; then there is nothing to divide by.
    false_alarm = float(stats.t.cdf((threshold - top) / max(spread_high, 1e-12), degrees))
    # An interval that ends at 1 is as wide upwards as downwards once there is a loss.
    above = max(top - mean, mean - bottom)
    loss = mean + above + float(stats.t.ppf(power, degrees)) * spread_high - threshold
    return Proposal(threshold, false_alarm, loss)


def check_settings(reseeds: int, missed: float, tolerated: float) -> None:
    """Refuse what no threshold can be placed by; see `propose`.

    Raises:
        ValueError: Naming what is out of range.
    """
    if reseeds < 2:
        raise ValueError(f"a spread needs reseeds of at least 2, got {reseeds}")
    if not 0 < missed < 1:
        raise ValueError(f"missed is a chance, between 0 and 1, got {missed}")
    if not 0 <= tolerated < 1:
        raise ValueError(f"tolerated is a share of the value, from 0 to below 1, got {tolerated}")


def check_loss(loss: float, tolerated: float) -> None:
    """Refuse a loss that no rows can detect.

    Raises:
        ValueError: If it is no more than what is tolerated.
    """
    if loss <= tolerated:
        raise ValueError(f"a loss of {loss:g} cannot be detected where {tolerated:g} is tolerated")


def unseen_spread(rows: int, reseeds: int, level: float = 0.95) -> float:
    r"""What the mean of values in [0, 1] may vary by although it never did.

    If all of them were 1 in so many measurements, their chance of being less may still be
    :math:`q = 1 - ((1 - level)/2)^{1/(rows \cdot reseeds)}`, and the mean of `rows` of them vary by
    :math:`\sqrt{q (1 - q) / rows}`.

    Source:
        Clopper & Pearson 1934, Biometrika 26(4).
    """
    chance = 1 - ((1 - level) / 2) ** (1 / (rows * reseeds))
    return math.sqrt(chance * (1 - chance) / rows)


def rows_needed(rows: int, detects: float, placed: float, tolerated: float, loss: float) -> int:
    """How many rows detect a loss; all but the numbers of rows are shares of the value.

    Intervals, and the spread of their ends, fall with the root of the rows; what is tolerated does
    not.

    Args:
        rows: That were measured.
        detects: The loss that they detect.
        placed: How far below the value the threshold lies.
        tolerated: How far it does at least.
        loss: That shall be detected.

    Raises:
        ValueError: If that is no more than what is tolerated.
    """
    check_loss(loss, tolerated)
    factor = (detects - placed) / (loss - tolerated)
    if placed > tolerated:
        factor = max(factor, detects / loss)
    return math.ceil(rows * factor**2)


def rounded_down(value: float) -> float:
    """To `DIGITS` significant digits, so that whoever reviews it has something to read."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - DIGITS)
    return float(f"{math.floor(value / unit) * unit:.{DIGITS}g}")
