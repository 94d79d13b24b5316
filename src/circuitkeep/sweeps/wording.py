"""The figures of a sweep as text, said alike in the terminal and on the page."""

from __future__ import annotations

from circuitkeep.compare.wording import gained, nats, p_value, points, share
from circuitkeep.sweeps.report import SweepReport

__all__ = ["about", "gained", "nats", "p_value", "points", "share"]


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
