r"""Whether a series of measurements has fallen: at once, or slowly.

Each value is held against the earlier ones as a standard normal, which needs neither their mean nor
their spread to be known (Hawkins 1987). A fall at once is a low one against the median of the last
values; a slow one is found by adding up what is below the mean of all of them (Page 1954). What is
said of false alarms assumes that the values are independent and about normal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist

WINDOW = 20
"""Values that the median is of."""
FEWEST = 5
"""With fewer earlier values nothing is said."""
ALLOWANCE = 0.5
"""Standard deviations per value below the mean that are not added up; half of the shift that is
found soonest."""
FARTHEST = 4.0
"""Standard deviations that one value may add, so that one outlier is no drift."""
OUTLIER = 2.5
"""Standard deviations from the mean at most with which a value counts for those after it, so that
a fall does not hide itself by widening the spread."""
SMALLEST = 0.005
"""Of the earlier values' mean: the least spread that is reckoned with, for other machines and other
versions of torch compute a little differently."""


@dataclass(frozen=True)
class Limits:
    """From where on a fall is told.

    Attributes:
        jump: Standard deviations that one value must be below the median of the last ones.
        drift: What the sum must exceed, in standard deviations.
    """

    jump: float
    drift: float

    @classmethod
    def of(cls, between: int | float) -> Limits:
        """Limits by which an unchanged series has a false alarm in so many values, on average.

        Half of them are left to jumps, half to drifts.

        Raises:
            ValueError: If `between` is below 10.
        """
        if not between >= 10:
            raise ValueError(f"false alarms must lie 10 values apart at least, got {between}")
        return cls(-NormalDist().inv_cdf(1 / (2 * between)), drift_limit(2 * between))


@dataclass(frozen=True)
class Step:
    """What is said of one value.

    Attributes:
        baseline: Median of the last sound values before it; NaN while there are few.
        jump: Standard deviations between the two; negative if the value is lower.
        drift: The sum of what was below the mean, in standard deviations.
        fell: Whether it is a fall at once, and no drift began before it.
        drifts: Whether the sum is beyond its limit.
        since: Place of the first value of the fall; None if there is none.
        start: Place from which on values count as the baseline.
    """

    baseline: float
    jump: float
    drift: float
    fell: bool
    drifts: bool
    since: int | None
    start: int


def drift_limit(between: int | float, allowance: float = ALLOWANCE) -> float:
    r"""The sum that standard normal values exceed once in so many values, on average.

    Solves :math:`(e^{2kb} - 2kb - 1) / 2k^2 = n` with :math:`b = h + 1.166` for :math:`h`.

    Source:
        Siegmund 1985, Sequential Analysis, chapter 2, for the sums of Page 1954, Biometrika 41.
    """
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        twice = 2 * allowance * (middle + 1.166)
        found = (math.exp(min(twice, 700)) - twice - 1) / (2 * allowance**2)
        low, high = (middle, high) if found < between else (low, middle)
    return high


def normal_of_t(t: float, degrees: int) -> float:
    r"""The standard normal value that is as rare as Student's t.

    .. math:: \frac{8\nu + 1}{8\nu + 3} \sqrt{\nu \log(1 + t^2 / \nu)}

    with the sign of `t`. Up to 6 standard deviations it is wrong by less than 0.2 with 4 degrees of
    freedom, by less than 0.04 with 10.

    Source:
        Wallace 1959, Annals of Mathematical Statistics 30.
    """
    size = math.sqrt(degrees * math.log1p(min(t * t, 1e300) / degrees))
    return math.copysign((8 * degrees + 1) / (8 * degrees + 3) * size, t)


def surprise(
    value: float, error: float, centre: float, spread: float, count: int, variance: float = 1.0
) -> float:
    """How far a value is from `count` earlier ones, as a standard normal.

    Args:
        value: What was measured.
        error: Its standard error. It counts as the spread where the earlier values happen to lie
            closer together, so that values that are all equal do not make any other an alarm.
        centre: Of the earlier values: their mean or median.
        spread: Their standard deviation.
        count: How many they are, at least 2.
        variance: Of `centre`, times `count`, in the square of `spread`: 1 for a mean, pi / 2 for a
            median.

    Returns:
        0 for a value at the centre, whatever the spread.

    Source:
        Hawkins 1987, The Statistician 36, "Self-starting CUSUM charts for location and scale".
    """
    if value == centre:
        return 0.0
    scale = max(spread, error, SMALLEST * abs(centre)) * math.sqrt(1 + variance / count)
    t = (value - centre) / scale if scale > 0 else math.copysign(math.inf, value - centre)
    return normal_of_t(t, count - 1)


class _Earlier:
    """The sound values since the baseline began, and the sums over them."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.values: list[tuple[int, float]] = []
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self.below, self.below_since = 0.0, start
        self.above, self.above_since = 0.0, start

    @property
    def _spread(self) -> float:
        return math.sqrt(self._squares / (self._count - 1))

    def add(self, place: int, value: float, repeat: bool) -> None:
        if self._count >= FEWEST:
            most = OUTLIER * self._spread
            value = max(self._mean - most, min(self._mean + most, value))
        self.values.append((place, value))
        if repeat:
            return
        self._count += 1
        away = value - self._mean
        self._mean += away / self._count
        self._squares += away * (value - self._mean)

    def jump(self, value: float, error: float) -> tuple[float, float]:
        """The median of the last values, and the value held against it."""
        last = sorted(value for _, value in self.values[-WINDOW:])
        count = len(last)
        if count < FEWEST:
            return math.nan, 0.0
        centre = (last[(count - 1) // 2] + last[count // 2]) / 2
        mean = sum(last) / count
        spread = math.sqrt(sum((one - mean) ** 2 for one in last) / (count - 1))
        return centre, surprise(value, error, centre, spread, count, math.pi / 2)

    def sum_up(self, place: int, value: float, error: float) -> None:
        if self._count < FEWEST:
            return
        away = surprise(value, error, self._mean, self._spread, self._count)
        away = max(-FARTHEST, min(FARTHEST, away))
        if self.below == 0:
            self.below_since = place
        if self.above == 0:
            self.above_since = place
        self.below = max(0.0, self.below - away - ALLOWANCE)
        self.above = max(0.0, self.above + away - ALLOWANCE)

    def mean_before(self, place: int) -> float:
        """Of the values before a place; NaN if there is none."""
        before = [value for at, value in self.values if at < place]
        return sum(before) / len(before) if before else math.nan


def follow(
    values: Sequence[float],
    errors: Sequence[float],
    limits: Limits,
    unsound: Collection[int] = (),
    repeats: Collection[int] = (),
    restarts: Collection[int] = (),
) -> list[Step]:
    """What is to be said of each value when it comes, from those before it alone.

    A value that falls, or is the end of a drift, is no baseline for those after it: the alarm goes
    on until values are back or the baseline restarts. After a drift one value at the old level is
    enough. A rise that lasts restarts the baseline by itself, from where it began, so that a fall
    back from it is seen.

    Args:
        values: One per measurement, in their order, more is better; one that is not finite is left
            out.
        errors: Their standard errors.
        limits: See `Limits`.
        unsound: Places of values that are no baseline for others.
        repeats: Places of values that are the one before, measured again: no new evidence of a
            drift.
        restarts: Places from which on a new baseline begins.

    Source:
        Page 1954, Biometrika 41, "Continuous inspection schemes", for the sums and where a drift
        began: after the sum was last 0.
    """
    steps: list[Step] = []
    earlier = _Earlier(0)
    fell_since: int | None = None
    slow = False  # whether the alarm that is on began as a drift
    for place, (value, error) in enumerate(zip(values, errors, strict=True)):
        if place in restarts:
            earlier, fell_since, slow = _Earlier(place), None, False
        if not (math.isfinite(value) and math.isfinite(error)):
            steps.append(Step(math.nan, 0.0, 0.0, False, False, None, earlier.start))
            continue
        repeat = place in repeats
        baseline, jump = earlier.jump(value, error)
        if not repeat:
            earlier.sum_up(place, value, error)
        fell = jump < -limits.jump
        # A repeat of the end of a drift is one, too.
        drifts = earlier.below > limits.drift or (repeat and bool(steps) and steps[-1].drifts)
        fell_since = (place if fell_since is None else fell_since) if fell else None
        slow = drifts and (slow or not fell)
        since = earlier.below_since if slow else fell_since
        if slow:
            # Seen from a drift's end, the last values are part of it.
            baseline = earlier.mean_before(earlier.below_since)
        steps.append(
            Step(baseline, jump, earlier.below, fell and not slow, drifts, since, earlier.start)
        )
        earlier.below = min(earlier.below, limits.drift)
        if not fell and not drifts and place not in unsound:
            earlier.add(place, value, repeat)
        if earlier.above > limits.drift:
            earlier = _restarted(earlier, repeats)
    return steps


def _restarted(earlier: _Earlier, repeats: Collection[int]) -> _Earlier:
    """From where a rise began."""
    fresh = _Earlier(earlier.above_since)
    for place, value in earlier.values:
        if place >= fresh.start:
            fresh.add(place, value, place in repeats)
    return fresh
