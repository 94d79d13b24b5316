"""Holding a model to a check."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.checks import geometry
from circuitkeep.checks.evidence import Evidence
from circuitkeep.checks.outcome import (
    Outcome,
    Verdict,
    decide,
    mean_interval_t,
    rows_to_decide,
)
from circuitkeep.checks.plan import Check, Plan
from circuitkeep.circuits import Head
from circuitkeep.evals.migration import Migration, migration
from circuitkeep.functional import mean_ratio_interval
from circuitkeep.graphs.answers import overlaps


def judge(plan: Plan, check: Check, now: Evidence, base: Evidence | None = None) -> Outcome:
    """Hold a model to one check.

    Args:
        plan: Whose check it is.
        check: One of the plan's.
        now: What the model does.
        base: What the base does on the same rows, for the checks that compare.

    Raises:
        ValueError: If a check needs a base and there is none.
    """
    if check.needs_base and base is None:
        raise ValueError(f"the check {check.name} compares with a base model; name one")
    if check.kind == "replicates":
        return _replicates(plan, check, now)
    if check.kind == "no_migration":
        assert base is not None
        return _no_migration(plan, check, now, base)
    if check.kind == "geometry":
        assert base is not None
        return _geometry(plan, check, now, base)
    values, reference = measured_values(plan, check, now, base)
    if reference is None:
        value = values.nanmean().item()
        low, high = mean_interval_t(values[0], bounded(plan, check))
    else:
        value = (values.nanmean(1) / reference.nanmean(1)).mean().item()
        low, high = mean_ratio_interval(values, reference)
    rows = int((~values.isnan()).any(0).sum()) if check.kind == "graph" else values.shape[1]
    verdict = decide(low, high, check.threshold)
    undecided = verdict == Verdict.INCONCLUSIVE
    return Outcome(
        plan.circuit.name,
        check.name,
        verdict,
        value,
        low,
        high,
        check.threshold,
        _unit(plan, check),
        rows,
        rows_to_decide(value, low, high, check.threshold, rows) if undecided else None,
        _detail(plan, check, now, low),
    )


def bounded(plan: Plan, check: Check) -> bool:
    """Whether what is measured on a row lies between 0 and 1."""
    accuracy = plan.circuit.behaviour == "accuracy"
    return check.kind in ("score", "graph") or (check.kind == "behaviour" and accuracy)


def weakest(plan: Plan, role: str, now: Evidence) -> Head:
    """The head of a role with the lowest score."""
    heads = next(one.heads for one in plan.circuit.roles if one.name == role)
    return min(heads, key=lambda head: now.measured.score(role, head))


def measured_values(
    plan: Plan, check: Check, now: Evidence, base: Evidence | None = None
) -> tuple[Float[Tensor, "group row"], Float[Tensor, "group row"] | None]:
    """What a check is about, row by row; and what it is divided by, if it is a share.

    A score is that of the role's weakest head, for a threshold holds for each of them. One group,
    but for the retention of identity: there every role is one. Not for ``replicates`` and
    ``no_migration``, which count, nor for ``geometry``, which is of all rows together.
    """
    measured = now.measured
    if check.kind == "score":
        return _weakest_scores(plan, check, now)[None], None
    if check.kind == "causal":
        return measured.effect_nats[None], None
    if check.kind == "behaviour":
        return measured.behaviour[None], None
    if check.kind == "faithfulness":
        assert now.kept is not None
        assert now.whole is not None
        return now.kept[None], now.whole[None]
    assert base is not None
    if check.kind == "graph":
        assert now.graphs is not None
        assert base.graphs is not None
        return overlaps(now.graphs, base.graphs)[None], None
    if check.part == "identity":
        after, before = (one.measured.role_scores(plan.circuit) for one in (now, base))
        return torch.stack(list(after.values())), torch.stack(list(before.values()))
    if check.part == "causal":
        return measured.effect_nats[None], base.measured.effect_nats[None]
    return measured.behaviour[None], base.measured.behaviour[None]


def part_scores(
    plan: Plan, check: Check, now: Evidence
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Mean score and its interval in each seed and family, for ``replicates``."""
    scores = _weakest_scores(plan, check, now)
    return {
        name: (scores[rows].nanmean().item(), mean_interval_t(scores[rows], True))
        for name, rows in _parts(plan, now).items()
    }


def _replicates(plan: Plan, check: Check, now: Evidence) -> Outcome:
    parts = part_scores(plan, check, now)
    means = {name: mean for name, (mean, _) in parts.items()}
    verdicts = {name: decide(*bounds, check.threshold) for name, (_, bounds) in parts.items()}
    certain = float(sum(verdict == Verdict.PASSED for verdict in verdicts.values()))
    possible = float(sum(verdict != Verdict.FAILED for verdict in verdicts.values()))
    wanted = float(len(parts) if check.at_least is None else min(check.at_least, len(parts)))
    worst = min(means, key=means.__getitem__)
    return Outcome(
        plan.circuit.name,
        check.name,
        decide(certain, possible, wanted),
        float(sum(mean >= check.threshold for mean in means.values())),
        certain,
        possible,
        wanted,
        f"of {len(parts)} seeds and families whose score reaches {check.threshold:g}",
        len(now.seed),
        detail=f"the lowest is {means[worst]:.2f}, {worst}",
    )


def _parts(plan: Plan, now: Evidence) -> dict[str, Bool[Tensor, " row"]]:
    """The rows of each seed, and those of each family where there are several."""
    parts = {f"seed {seed}": now.seed == place for place, seed in enumerate(plan.seeds)}
    families = now.family.unique().tolist()
    if len(families) > 1:
        parts |= {f"family {family}": now.family == family for family in families}
    return parts


def _no_migration(plan: Plan, check: Check, now: Evidence, base: Evidence) -> Outcome:
    pooled = moved(plan, now, base)
    every = [
        {head for _, head in moved(plan, now, base, now.seed == place)}
        for place in range(len(plan.seeds))
    ]
    low, high = float(len(set.intersection(*every))), float(len(set.union(*every)))
    verdict = Verdict.PASSED if high == 0 else Verdict.FAILED if low else Verdict.INCONCLUSIVE
    return Outcome(
        plan.circuit.name,
        check.name,
        verdict,
        float(len({head for _, head in pooled})),
        low,
        high,
        check.threshold,
        "heads that lost a job or took one up",
        len(now.seed),
        detail="; ".join(
            f"{role.name}: {found}"
            for role in plan.circuit.roles
            if (found := _migration(plan, role.name, now, base))
        ),
    )


def moved(
    plan: Plan, now: Evidence, base: Evidence, rows: Bool[Tensor, " row"] | None = None
) -> set[tuple[str, Head]]:
    """Roles, and heads that lost or took up their job; on some of the rows, if said."""
    return {
        (role.name, head)
        for role in plan.circuit.roles
        for heads in _migration(plan, role.name, now, base, rows)
        for head in heads
    }


def _migration(
    plan: Plan,
    name: str,
    now: Evidence,
    base: Evidence,
    rows: Bool[Tensor, " row"] | None = None,
) -> Migration:
    role = next(role for role in plan.circuit.roles if role.name == name)
    chosen = slice(None) if rows is None else rows
    after, before = (one.measured.scores[name][chosen].nanmean(0) for one in (now, base))
    return migration(role, after, before)


def _geometry(plan: Plan, check: Check, now: Evidence, base: Evidence) -> Outcome:
    name = check.part.partition(".")[0]
    found, far = geometry.kept(check.part, base.manifolds[name], now.manifolds[name])
    verdict = decide(found.low, found.high, check.threshold)
    undecided = verdict == Verdict.INCONCLUSIVE
    rows = len(now.seed)
    return Outcome(
        plan.circuit.name,
        check.name,
        verdict,
        found.value,
        found.low,
        found.high,
        check.threshold,
        geometry.unit(check.part),
        rows,
        rows_to_decide(found.value, found.low, found.high, check.threshold, rows)
        if undecided
        else None,
        far,
    )


def _weakest_scores(plan: Plan, check: Check, now: Evidence) -> Float[Tensor, " row"]:
    head = weakest(plan, check.part, now)
    return now.measured.scores[check.part][:, head.layer, head.index]


def _detail(plan: Plan, check: Check, now: Evidence, low: float) -> str:
    if math.isnan(low):
        return "what it is compared with is not positive"
    return f"the lowest is {weakest(plan, check.part, now)}" if check.kind == "score" else ""


def _unit(plan: Plan, check: Check) -> str:
    if check.kind == "score":
        return "mean attention to the role's targets"
    if check.kind == "causal":
        return "nats per answer that ablating the heads costs"
    if check.kind == "behaviour":
        return {
            "accuracy": "share of answers given",
            "advantage_nats": "nats per answer that the context is worth",
            "logit_difference": "logits of the answer above the distractor",
        }[plan.circuit.behaviour]
    if check.kind == "faithfulness":
        return "share of what all heads do that these do alone"
    if check.kind == "graph":
        return "of the influence on the answers, which both models' graphs share"
    return f"of the base's {check.part}"
