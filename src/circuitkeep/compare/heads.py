"""What became of single heads: who does a role's job now, how their order moved, what they say."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from scipy import stats
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.causal.attribution import direct_attribution
from circuitkeep.circuits import Circuit, Role
from circuitkeep.compare.report import MovedHeads, Ranking
from circuitkeep.evals import CircuitMeasurement
from circuitkeep.evals.migration import migration
from circuitkeep.probes import ProbeBatch

TOP = 10
"""How many of the best heads are compared, beside as many as the role names."""


def moved_heads(
    circuit: Circuit, now: CircuitMeasurement, base: CircuitMeasurement
) -> dict[str, MovedHeads]:
    """Role -> the heads that lost its job and those that took it up; see `migration`."""
    found = {}
    for role in circuit.roles:
        moved = migration(role, _mean(now, role), _mean(base, role))
        found[role.name] = MovedHeads(tuple(map(str, moved.lost)), tuple(map(str, moved.risen)))
    return found


def rankings(
    circuit: Circuit, now: CircuitMeasurement, base: CircuitMeasurement
) -> dict[str, Ranking]:
    """Role -> how the order of all heads by their score compares with the base's."""
    found = {}
    for role in circuit.roles:
        after, before = _mean(now, role).flatten(), _mean(base, role).flatten()
        found[role.name] = Ranking(
            rank_correlation(after, before),
            top_overlap(after, before, len(role.heads)),
            top_overlap(after, before, TOP),
        )
    return found


def rank_correlation(now: Float[Tensor, " head"], base: Float[Tensor, " head"]) -> float:
    """Spearman's rank correlation in [-1, 1]; NaN where all heads of a model score alike."""
    if now.eq(now[0]).all() or base.eq(base[0]).all():
        return float("nan")
    found: Any = stats.spearmanr(now.numpy(), base.numpy())
    return float(found.statistic)


def top_overlap(now: Float[Tensor, " head"], base: Float[Tensor, " head"], count: int) -> float:
    """Share of the base's `count` best heads that are among the `count` best now.

    Of heads that score alike the earlier counts as better. NaN where the model has no more than
    `count` heads, so that all would be among them.
    """
    if count >= len(now):
        return float("nan")
    best = [
        set(values.argsort(descending=True, stable=True)[:count].tolist()) for values in (now, base)
    ]
    return len(best[0] & best[1]) / count


def contributions(
    backend: Backend, circuit: Circuit, batch: ProbeBatch
) -> tuple[dict[str, float], str]:
    """What each named head writes to the answer's logit by itself; see `direct_attribution`.

    Returns:
        Head -> mean over rows, in logits, and how that was measured. NaN where the model's logits
        cannot be taken apart, and the reason why.
    """
    names = [str(head) for head in circuit.heads]
    try:
        said = direct_attribution(backend, batch).heads.nanmean(0)
    except ValueError as error:
        return dict.fromkeys(names, float("nan")), f"not measured: {error}"
    other = "the distractor's logit" if batch.distractor is not None else "the mean of all logits"
    method = (
        "direct logit attribution: what the head itself adds to the answer's logit minus "
        f"{other}, the final norm's scale frozen; what it does through later layers is not in it"
    )
    found = [said[head.layer, head.index].item() for head in circuit.heads]
    return dict(zip(names, found, strict=True)), method


def _mean(measured: CircuitMeasurement, role: Role) -> Float[Tensor, "layer head"]:
    return measured.scores[role.name].nanmean(0)
