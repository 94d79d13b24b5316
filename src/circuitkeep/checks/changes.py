"""What a new baseline changes, told so that whoever reviews it knows what to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator

from circuitkeep.checks.baseline import Baseline, Pinned

SURPRISING = 3.0
"""Standard deviations of a difference, from which on rows do not explain it."""


def changes(old: Baseline, new: Baseline) -> list[str]:
    """Lines that say what is no longer as it was, and what that may hide."""
    found = []
    if old.model != new.model:
        found.append("the model: these are other weights than those that were pinned")
    for name in ("rows", "seeds", "reseeds", "missed", "tolerated"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            found.append(f"{name}: {before} -> {after}: intervals and thresholds move with it")
    for name in {**old.checks, **new.checks}:
        if name not in new.checks:
            found.append(f"{name}: no longer pinned: nothing is asked of it any more")
        elif name not in old.checks:
            found.append(f"{name}: pinned from now on, at {new.checks[name].threshold:.4g}")
        else:
            found += _changed(name, old.checks[name], new.checks[name])
    return found or ["nothing has changed"]


def _changed(name: str, old: Pinned, new: Pinned) -> Iterator[str]:
    if old.value != new.value:
        spread = math.hypot(old.seed_spread, new.seed_spread)
        beyond = abs(new.value - old.value) > SURPRISING * spread
        why = (
            "more than other rows explain: the model does this "
            + ("less" if new.value < old.value else "more")
            + " than before"
            if beyond
            else "no more than other rows explain"
        )
        yield f"{name}: {old.value:.4g} -> {new.value:.4g}, {why}"
    if old.threshold != new.threshold:
        why = (
            f"lowered: losses of up to {1 - new.threshold / old.threshold:.0%} that failed before "
            "pass from now on; is that what you want?"
            if new.threshold < old.threshold
            else "raised"
        )
        yield f"{name}: threshold {old.threshold:.4g} -> {new.threshold:.4g}, {why}"
