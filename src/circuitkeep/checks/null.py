r"""What a check would measure if there were no circuit: the least that a threshold must be above.

- Attention (``score``, ``replicates``, identity): the highest of two bounds that 95% of the heads
  without the role stay below. One is over the heads of the same layers in twins of the model whose
  weights are shuffled, the other over the heads of the model itself that the circuit does not name,
  by their median and median absolute deviation, because some of them may have the role as well.
- Behaviour: for an accuracy, the highest of the twins' and of guessing one token; else 0.
- Causal effect and faithfulness: 0.

Scores are compared as :math:`\arcsin\sqrt{s}`, as in `circuitkeep.functional.inference`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.shuffled import shuffled_weights
from circuitkeep.checks.evidence import Evidence
from circuitkeep.checks.plan import Check, Plan
from circuitkeep.evals.circuit import CircuitMeasurement, measure_circuit
from circuitkeep.functional.inference import NORMAL_95
from circuitkeep.probes import ProbeBatch

TWINS = 16


def null_levels(
    plan: Plan,
    backend: Backend,
    rows: ProbeBatch,
    now: Evidence,
    base: Evidence | None = None,
    twins: int = TWINS,
) -> dict[str, float]:
    """Name of a check -> what it would measure without a circuit.

    Args:
        plan: Names the checks; those that count heads have no null and are left out.
        backend: The model; its weights are put back bit for bit.
        rows: What the twins are measured on.
        now: What the model itself does.
        base: What its base does, for the checks that compare.
        twins: How many.

    Raises:
        ValueError: For fewer than 2 twins.
    """
    if twins < 2:
        raise ValueError(f"a null needs at least 2 random-weight twins, got {twins}")
    measured = []
    for seed in range(twins):
        with shuffled_weights(backend.model, seed):
            measured.append(measure_circuit(backend, plan.circuit, rows, causal=False))
    scores = {
        role.name: score_null(plan, role.name, now, [one.scores[role.name] for one in measured])
        for role in plan.circuit.roles
    }
    behaviour = 0.0
    if plan.circuit.behaviour == "accuracy":
        answers = [one.behaviour.nanmean().item() for one in measured]
        behaviour = max(1 / backend.vocab_size, *answers)
    found = {}
    for check in plan.checks:
        if check.kind in ("score", "replicates"):
            found[check.name] = scores[check.part]
        elif check.kind == "behaviour":
            found[check.name] = behaviour
        elif check.kind in ("causal", "faithfulness"):
            found[check.name] = 0.0
        elif check.kind == "retention":
            assert base is not None
            found[check.name] = _share(plan, check, scores, behaviour, base.measured)
    return found


def score_null(
    plan: Plan, role: str, now: Evidence, twins: Sequence[Float[Tensor, "row layer head"]]
) -> float:
    """What 95% of the heads without a role stay below; see the module."""
    named = next(one.heads for one in plan.circuit.roles if one.name == role)
    layers = sorted({head.layer for head in named})
    random = _angle(torch.stack([one.nanmean(0)[layers] for one in twins]).flatten())
    bounds = [random.mean() + NORMAL_95 * math.sqrt(1 + 1 / len(random)) * random.std()]
    others = now.measured.scores[role].nanmean(0)
    for head in named:
        others[head.layer, head.index] = torch.nan
    others = _angle(others[layers].flatten())
    if not others.isnan().all():
        median = others.nanmedian()
        # 1.4826: a normal sample's standard deviation over its median absolute deviation.
        deviation = 1.4826 * (others - median).abs().nanmedian()
        bounds.append(median + NORMAL_95 * torch.maximum(deviation, random.std()))
    return torch.stack(bounds).max().clamp(0, math.pi / 2).sin().square().item()


def _share(
    plan: Plan,
    check: Check,
    scores: Mapping[str, float],
    behaviour: float,
    base: CircuitMeasurement,
) -> float:
    if check.part == "causal":
        return 0.0
    if check.part == "behaviour":
        return behaviour / base.behaviour.nanmean().item()
    parts = [
        scores[role] / values.nanmean().item()
        for role, values in base.role_scores(plan.circuit).items()
    ]
    return sum(parts) / len(parts)


def _angle(score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return score.clamp(0, 1).sqrt().asin()
