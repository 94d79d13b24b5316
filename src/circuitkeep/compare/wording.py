"""The numbers and sentences of a report as text, said alike in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from statistics import fmean

from circuitkeep.compare.paired import KINDS, Kept
from circuitkeep.compare.replicates import Estimate
from circuitkeep.compare.report import CheckpointResult, CircuitResult, Interval, Report
from circuitkeep.pages import number, percent, signed

UNITS = {"accuracy": "", "advantage_nats": "nats", "logit_difference": "logits"}


def percent_interval(interval: Interval) -> str:
    """``(0.944, 0.991)`` as ``[94, 99]``; nothing where a bound is NaN."""
    if not all(map(isfinite, interval)):
        return ""
    low, high = (percent(bound).rstrip("%") for bound in interval)
    return f"[{low}, {high}]"


def retention(result: CircuitResult, kind: str) -> tuple[float, Interval]:
    """Retention of one of `KINDS`, and its 95% interval."""
    return {
        "identity": (result.identity_retention, result.identity_interval),
        "causal": (result.causal_retention, result.causal_interval),
        "behaviour": (result.behaviour_retention, result.behaviour_interval),
    }[kind]


def measured(result: CircuitResult, kind: str) -> float:
    """What the retention of `kind` is a share of: mean score, nats per answer, or the behaviour."""
    if kind == "identity":
        return fmean(fmean(scores.values()) for scores in result.role_scores.values())
    return result.causal_effect_nats if kind == "causal" else result.behaviour


def loss_difference(checkpoint: CheckpointResult, base: CheckpointResult, dataset: str) -> float:
    """Loss of the checkpoint minus that of the base, in nats per token."""
    return checkpoint.capability[dataset]["loss_nats"] - base.capability[dataset]["loss_nats"]


def summary(report: Report, checkpoint: CheckpointResult) -> str:
    """What a checkpoint kept and what that cost, in one sentence without its subject."""
    kept = [_kept(name, checkpoint.circuits[name]) for name in report.circuits]
    costs = [
        f"{signed(loss_difference(checkpoint, report.base, dataset))} nats on {dataset}"
        for dataset in report.base.capability
    ]
    return f"keeps {_listed(kept)}" + (f", at {_listed(costs)}" if costs else "") + "."


def _kept(circuit: str, result: CircuitResult) -> str:
    shares = {kind: percent(retention(result, kind)[0]) for kind in KINDS}
    behaviour = shares["behaviour"] if isfinite(result.behaviour_retention) else "an undefined part"
    return (
        f"{behaviour} of the {circuit} behaviour "
        f"(identity {shares['identity']}, causal {shares['causal']})"
    )


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def listed_heads(roles: Mapping[str, tuple[str, ...]]) -> str:
    """``induction L1H0, L1H2; previous token L0H3``."""
    return "; ".join(f"{role} {', '.join(heads)}" for role, heads in roles.items())


def moves(report: Report, checkpoint: CheckpointResult) -> str:
    """Which heads lost a role's job or took it up, in one line; nothing where none did."""
    found = []
    for circuit in report.circuits:
        for role, moved in checkpoint.circuits[circuit].moved.items():
            parts = [
                f"{', '.join(heads)} {verb}"
                for heads, verb in ((moved.lost, "lost it"), (moved.risen, "took it up"))
                if heads
            ]
            if parts:
                of = f"{circuit}, " if len(report.circuits) > 1 else ""
                found.append(f"{of}{role}: {' and '.join(parts)}")
    return "; ".join(found)


def scores_from_to(
    heads: tuple[str, ...], role: str, result: CircuitResult, base: CircuitResult
) -> list[str]:
    """``L1H0 0.95 → 0.33`` for each of `heads`."""
    said = []
    for head in heads:
        layer, index = (int(part) for part in head[1:].split("H"))
        before, now = (number(each.scores[role][layer][index]) for each in (base, result))
        said.append(f"{head} {before} → {now}")
    return said


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
    """``+23 points, p .004``: the difference to another group; empty without one."""
    if kept.difference is None or not isfinite(kept.difference.mean):
        return ""
    points = signed(100 * kept.difference.mean, 0)
    return f"{points} points{p_value(kept.p_holm)}"


def p_value(p: float) -> str:
    """``, p .03``, three digits at most; empty for NaN."""
    if not isfinite(p):
        return ""
    return ", p < .001" if p < 0.001 else f", p {number(p, 3 if p < 0.01 else 2).lstrip('0')}"


def points(difference: Estimate) -> tuple[str, str]:
    """``+23`` and ``[+12, +34]``, in points of retention."""
    low, mean, high = (
        signed(100 * value, 0) for value in (difference.low, difference.mean, difference.high)
    )
    return mean, f"[{low}, {high}]" if isfinite(difference.low) else ""
