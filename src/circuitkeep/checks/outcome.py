"""What came of a check: passed, failed, or not to be told from so few rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from jaxtyping import Float
from scipy import stats
from torch import Tensor

LEVEL = 0.95
"""Of every interval."""
MOST_ROWS = 100_000
"""Beyond so many the value counts as being at the threshold."""


class Verdict(str, Enum):
    """Of one check."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        circuit: Its name.
        check: Its name; see `Check.name`.
        verdict: Passed if the whole interval reaches the threshold, failed if none of it does.
        value: What was measured.
        low, high: 95% interval of it over rows. For ``replicates``, in how many parts the score is
            certain to reach the threshold, and in how many it may; for ``no_migration``, how many
            heads moved on the rows of every seed, and how many on those of any.
        threshold: What was asked for.
        unit: Of all of these, in words.
        rows: That were measured.
        more_rows: How many more would decide, if they are like those; None if it is decided or
            the value is at the threshold.
        detail: What else there is to say, in a sentence; or nothing.
    """

    circuit: str
    check: str
    verdict: Verdict
    value: float
    low: float
    high: float
    threshold: float
    unit: str
    rows: int
    more_rows: int | None = None
    detail: str = ""


def mean_interval_t(
    values: Float[Tensor, " row"], bounded: bool = False, level: float = LEVEL
) -> tuple[float, float]:
    r"""Student's interval of a mean; NaN left out.

    Args:
        values: One per row.
        bounded: They lie between 0 and 1. If all are 0 or all are 1 they have no spread, and yet
            say little if there are few: the other end is then where so many alike would be seen
            with probability :math:`(1 - level) / 2`, :math:`1 - ((1 - level) / 2)^{1/n}` away.
            That holds for any values in [0, 1], whose chance of being 1 is at most their mean.
        level: Of the interval.

    Returns:
        NaN for fewer than two rows.

    Source:
        Clopper & Pearson 1934, Biometrika 26(4), for values that are all alike.
    """
    kept = values[~values.isnan()].double()
    n = len(kept)
    if n < 2:
        return float("nan"), float("nan")
    mean = kept.mean().item()
    tail = (1 - level) / 2
    half = float(stats.t.ppf(1 - tail, n - 1)) * kept.std().item() / math.sqrt(n)
    if bounded:
        away = 1 - tail ** (1 / n)
        if mean == 1:
            return 1 - away, 1.0
        if mean == 0:
            return 0.0, away
        return max(0.0, mean - half), min(1.0, mean + half)
    return mean - half, mean + half


def decide(low: float, high: float, threshold: float) -> Verdict:
    """Passed if all of the interval reaches the threshold, failed if none of it does.

    What is not a number cannot have reached it.
    """
    if math.isnan(low) or math.isnan(high) or high < threshold:
        return Verdict.FAILED
    return Verdict.PASSED if low >= threshold else Verdict.INCONCLUSIVE


def rows_to_decide(
    value: float, low: float, high: float, threshold: float, rows: int
) -> int | None:
    """How many rows more would decide, since an interval shrinks with the root of their number.

    None if they are more than `MOST_ROWS` in all.
    """
    gap = abs(value - threshold)
    half = value - low if value >= threshold else high - value
    total = math.inf if gap == 0 else rows * (half / gap) ** 2
    return math.ceil(total) - rows if total <= MOST_ROWS else None
