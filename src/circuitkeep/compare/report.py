"""The frozen result of a comparison; every renderer reads it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class MovedHeads:
    """Which heads changed what they do, judged by their scores against the base's.

    Attributes:
        lost: Named heads that no longer do the role's job.
        risen: Heads that are not named, and do it now as they did not in the base.
    """

    lost: tuple[str, ...] = ()
    risen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """All heads of the model in the order of their scores, against the base's order.

    Attributes:
        spearman: Rank correlation; 1 is the same order. NaN where all heads score alike.
        top_named: Share of the base's best heads, as many as the role names, still among the best.
        top_10: The same of the best ten; NaN in a model of no more heads.
    """

    spearman: float
    top_named: float
    top_10: float


@dataclass(frozen=True)
class CircuitResult:
    """One circuit in one checkpoint, on held-out probe rows.

    Retentions are value now / value in the base model, 1.0 for the base itself; intervals are 95%
    bootstrap intervals over probe rows, paired with the base's rows. NaN where the base's value
    is 0, so that a ratio says nothing.

    Attributes:
        identity_retention: Of the named heads' scores, averaged over roles.
        causal_retention: Of the answer loss that ablating the named heads jointly costs.
        behaviour_retention: Of the behaviour's value.
        causal_effect_nats: That cost, in nats per answer.
        behaviour: The behaviour's value, in the unit that the circuit's `behaviour` names.
        role_scores: Role -> head (``"L1H0"``) -> score of the named heads, a probability.
        scores: Role -> ``[layer][head]`` score of every head of the model.
        moved: Role -> heads that lost its job or took it up.
        rankings: Role -> the order of all heads against the base's.
        contributions: Named head -> what it writes to the answer's logit by itself, in logits; NaN
            where the model's logits cannot be taken apart.
    """

    identity_retention: float
    causal_retention: float
    behaviour_retention: float
    identity_interval: Interval
    causal_interval: Interval
    behaviour_interval: Interval
    causal_effect_nats: float
    behaviour: float
    role_scores: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, tuple[tuple[float, ...], ...]]
    moved: Mapping[str, MovedHeads]
    rankings: Mapping[str, Ranking]
    contributions: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointResult:
    """One model: what it can do, and what each circuit kept.

    Attributes:
        capability: Dataset -> ``{"loss_nats": x, "perplexity": x}``, with ``"accuracy"`` where the
            data has answers.
    """

    name: str
    path: str
    capability: Mapping[str, Mapping[str, float]]
    circuits: Mapping[str, CircuitResult]


@dataclass(frozen=True)
class CircuitDescription:
    """How a circuit was probed, so that every figure of the report can be made again."""

    roles: Mapping[str, tuple[str, ...]]
    behaviour: str
    source: str
    probe: str
    rows: int
    seed: int
    ablation: str
    contribution: str = ""


@dataclass(frozen=True)
class Report:
    """A base model and the checkpoints that came of it, side by side.

    Attributes:
        steps: Training step of each checkpoint where they are one training's, in its order; none
            where they are not.
    """

    base: CheckpointResult
    checkpoints: tuple[CheckpointResult, ...]
    circuits: Mapping[str, CircuitDescription]
    created: str
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[int, ...] = ()

    def to_json(self) -> str:
        """JSON with keys as the attributes; NaN becomes null."""
        return json.dumps(_finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
