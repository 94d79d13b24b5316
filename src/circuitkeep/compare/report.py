"""The frozen result of a comparison; every renderer reads it and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import isfinite
from typing import Any

from circuitkeep.compare.moved import GeometryResult, ManifoldDescription
from circuitkeep.compare.paired import Kept
from circuitkeep.compare.prompts import Prompt
from circuitkeep.compare.replicates import Estimate

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
class GraphResult:
    """What the attribution graphs of a checkpoint's answers have in common with the base's.

    Attributes:
        shared: Share of the influence on an answer, mean over prompts.
        interval: Its 95% bootstrap interval over prompts.
        other_prompts: The same with the base's graphs of other prompts.
        rows: Prompts.
    """

    shared: float
    interval: Interval
    other_prompts: float
    rows: int


@dataclass(frozen=True)
class CheckpointResult:
    """One model: what it can do, and what each circuit kept.

    Attributes:
        capability: Dataset -> ``{"loss_nats": x, "perplexity": x}``, with ``"accuracy"`` where the
            data has answers.
        tasks: Task of lm-evaluation-harness -> metric -> value; its standard error under
            ``METRIC_stderr`` where there is one.
        graphs: Circuit -> how its answers come about, where that was asked.
        explained: Share of the variance of its MLP outputs that the transcoder explains which the
            graphs were made with; None without one.
        geometry: Circuit -> how its manifolds and the maps of its heads have moved, of the circuits
            that have manifolds.
    """

    name: str
    path: str
    capability: Mapping[str, Mapping[str, float]]
    circuits: Mapping[str, CircuitResult]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    graphs: Mapping[str, GraphResult] = field(default_factory=dict)
    explained: float | None = None
    geometry: Mapping[str, GeometryResult] = field(default_factory=dict)


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
    manifolds: Mapping[str, ManifoldDescription] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplicateGroup:
    """Checkpoints that differ in nothing but the seed.

    Attributes:
        checkpoints: Their names, in the order of their seeds.
        against: The group that it is compared with, seed by seed; empty for that one itself.
        circuits: Circuit -> kind -> what was kept.
        losses: Dataset -> loss in nats per token, over seeds.
    """

    name: str
    checkpoints: tuple[str, ...]
    against: str
    circuits: Mapping[str, Mapping[str, Kept]]
    losses: Mapping[str, Kept]


@dataclass(frozen=True)
class Column:
    """What is probed in a `Transfer`.

    Attributes:
        name: The circuit's, with that of the further probe.
        probe: What makes the prompts.
        base: Kind -> the base's value: mean score, nats per answer, and the behaviour.
    """

    name: str
    probe: str
    base: Mapping[str, float]


@dataclass(frozen=True)
class TransferRow:
    """What one checkpoint kept, or a group of replicates.

    Attributes:
        name: Of the checkpoint or the group.
        trained_on: What it was trained on; its name where that is not known.
        shares: Column -> kind -> value / the base's value and its 95% interval: over rows for one
            checkpoint, over rows and seeds for several.
    """

    name: str
    trained_on: str
    shares: Mapping[str, Mapping[str, tuple[float, Interval]]]


@dataclass(frozen=True)
class Transfer:
    """Trained on (rows) x probed on (columns); rows trained on the same stand together."""

    columns: tuple[Column, ...]
    rows: tuple[TransferRow, ...]


@dataclass(frozen=True)
class Report:
    """A base model and the checkpoints that came of it, side by side.

    Attributes:
        steps: Training step of each checkpoint where they are one training's, in its order; none
            where they are not.
        prompts: Prompts of the user's, with attention on them.
        replicates: Groups of checkpoints that differ in nothing but the seed; the others stand
            against the first.
        transfer: All that was probed, where that is more than one circuit under one probe.
        graph_parts: What of the attribution graphs was compared; empty where they were not.
    """

    base: CheckpointResult
    checkpoints: tuple[CheckpointResult, ...]
    circuits: Mapping[str, CircuitDescription]
    created: str
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    replicates: tuple[ReplicateGroup, ...] = ()
    transfer: Transfer | None = None
    graph_parts: str = ""

    @property
    def named_heads(self) -> tuple[str, ...]:
        """Those that circuits name, in the order of the circuits, each once."""
        roles = (circuit.roles for circuit in self.circuits.values())
        return tuple(dict.fromkeys(head for each in roles for own in each.values() for head in own))

    def to_json(self) -> str:
        """JSON with keys as the attributes; NaN becomes null.

        Of the prompts it holds the patterns of the named heads, query by query.
        """
        content = plain(replace(self, prompts=()))
        content["prompts"] = [self._prompt(prompt) for prompt in self.prompts]
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        models = (self.base, *self.checkpoints)
        return {
            "text": prompt.text,
            "tokens": list(prompt.tokens),
            "patterns": {
                model.name: {head: prompt.rows(number, head) for head in self.named_heads}
                for number, model in enumerate(models)
            },
        }


def plain(value: Any) -> Any:
    """What JSON can hold of dataclasses, mappings and numbers; NaN becomes None."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Estimate):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
