"""The figures of a sweep as text, said alike in the terminal and on the page."""

from __future__ import annotations

from math import isfinite

from circuitkeep.compare.replicates import Estimate
from circuitkeep.compare.wording import percent_interval
from circuitkeep.pages import number, percent, signed
from circuitkeep.sweeps.report import Kept, SweepReport


def share(estimate: Estimate) -> tuple[str, str]:
    """``97%`` and ``[94, 99]``."""
    return percent(estimate.mean), percent_interval((estimate.low, estimate.high))


def nats(estimate: Estimate, sign: bool = False) -> tuple[str, str]:
    """``2.031`` and ``[2.020, 2.042]``; with `sign`, all of them have one."""
    write = signed if sign else lambda value: number(value, 3)
    known = isfinite(estimate.low) and isfinite(estimate.high)
    interval = f"[{write(estimate.low)}, {write(estimate.high)}]" if known else ""
    return write(estimate.mean), interval


def gained(kept: Kept) -> str:
    """``+23 points, p .004``: the difference to the unregularized runs; empty without one."""
    if kept.difference is None or not isfinite(kept.difference.mean):
        return ""
    points = signed(100 * kept.difference.mean, 0)
    return f"{points} points{p_value(kept.p_holm)}"


def p_value(p: float) -> str:
    """``, p .03``, three digits at most; empty for NaN."""
    if not isfinite(p):
        return ""
    return ", p < .001" if p < 0.001 else f", p {number(p, 3 if p < 0.01 else 2).lstrip('0')}"


def about(report: SweepReport) -> str:
    """What the figures are, in a few sentences."""
    seeds = sorted({seed for group in report.groups for seed in group.seeds})
    text = (
        f"{len(report.runs)} runs in {len(report.groups)} settings, training seeds "
        f"{', '.join(map(str, seeds))}. Percent of the base model's value on held-out rows, with "
        "95% intervals over prompts and seeds at once (over prompts alone where there is one "
        "seed)."
    )
    if any(group.price_difference for group in report.groups):
        text += (
            " Differences are to the unregularized runs of the same seeds, p-values "
            "Holm-corrected over settings and circuits."
        )
    return text


def points(difference: Estimate) -> tuple[str, str]:
    """``+23`` and ``[+12, +34]``, in points of retention."""
    low, mean, high = (
        signed(100 * value, 0) for value in (difference.low, difference.mean, difference.high)
    )
    return mean, f"[{low}, {high}]" if isfinite(difference.low) else ""
