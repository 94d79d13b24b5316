"""Measuring one circuit in one model: where its heads attend, what they do, what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.causal.ablation import (
    ablation_effect,
    answer_log_probs,
    answer_loss,
    chunks,
    mean_by_row,
)
from circuitkeep.circuits import Circuit, Head
from circuitkeep.functional import head_score_per_row
from circuitkeep.probes import ProbeBatch


@dataclass(frozen=True)
class CircuitMeasurement:
    """One circuit in one model on one set of probe rows; everything per row, on the CPU.

    Attributes:
        scores: Role -> mean attention that every head of the model pays to the role's targets;
            NaN in rows without a target.
        effect_nats: Answer loss that mean-ablating the circuit's heads jointly costs, per row.
        behaviour: The circuit's behaviour per row, in the unit it names.
    """

    scores: Mapping[str, Float[Tensor, "batch layer head"]]
    effect_nats: Float[Tensor, " batch"]
    behaviour: Float[Tensor, " batch"]

    def score(self, role: str, head: Head) -> float:
        """Mean score of one head, a probability."""
        return self.scores[role][:, head.layer, head.index].nanmean().item()

    def role_scores(self, circuit: Circuit) -> dict[str, Float[Tensor, " batch"]]:
        """Role -> score per row, averaged over the heads the circuit names for it."""
        found = {}
        for role in circuit.roles:
            values = [self.scores[role.name][:, head.layer, head.index] for head in role.heads]
            found[role.name] = torch.stack(values).mean(0)
        return found


def measure_circuit(
    backend: Backend, circuit: Circuit, batch: ProbeBatch, causal: bool = True
) -> CircuitMeasurement:
    """Measure identity, causal effect and behaviour of `circuit`; no gradient, no side effect.

    Args:
        backend: The model.
        circuit: Heads, roles and behaviour.
        batch: Held-out probe rows, on the CPU.
        causal: Whether to ablate; without it ``effect_nats`` is NaN.

    Raises:
        ValueError: If a head is outside the model, a role is not labelled by the batch, or the
            batch lacks what the behaviour needs.
    """
    circuit.check_model(backend.n_layers, backend.n_heads)
    circuit.check_labels(batch.targets)
    roles = [role.name for role in circuit.roles]
    effect = torch.full((len(batch),), float("nan"))
    if causal:
        effect = ablation_effect(backend, circuit.heads, batch)
    return CircuitMeasurement(
        score_heads(backend, batch, roles), effect, behaviour_values(backend, circuit, batch)
    )


@torch.no_grad()
def score_heads(
    backend: Backend, batch: ProbeBatch, roles: list[str]
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """Score every head of the model on every role's targets, per row (on the CPU)."""
    layers, heads = backend.n_layers, backend.n_heads
    everything = tuple(Head(layer, index) for layer in range(layers) for index in range(heads))
    found: dict[str, list[Tensor]] = {role: [] for role in roles}
    for part in chunks(batch, backend.device):
        with probe_mode(backend.model), backend.capture(Sites(pattern=everything)) as captured:
            backend.forward(part.tokens)
        pattern = captured.pattern
        for role in roles:
            score = head_score_per_row(pattern, part.targets[role])
            found[role].append(score.unflatten(1, (layers, heads)).cpu())
    return {role: torch.cat(parts) for role, parts in found.items()}


@torch.no_grad()
def behaviour_values(
    backend: Backend, circuit: Circuit, batch: ProbeBatch
) -> Float[Tensor, " batch"]:
    """The circuit's behaviour, per row: see `circuitkeep.circuits.BEHAVIOURS`.

    - ``accuracy``: fraction of answer tokens that are the most likely next token.
    - ``advantage_nats``: loss on the answer when the context does not support it, minus the loss
      when it does, in nats per answer token.
    - ``logit_difference``: logit of the answer minus logit of the distractor.
    """
    if circuit.behaviour == "advantage_nats":
        if batch.corrupted is None:
            raise ValueError(
                f"circuit {circuit.name!r}: its probe has no corrupted prompts, which "
                "'advantage_nats' compares with; use behaviour: accuracy"
            )
        return answer_loss(backend, batch.corrupted) - answer_loss(backend, batch)
    values = []
    for part in chunks(batch, backend.device):
        log_probs, part = answer_log_probs(backend, part)
        if circuit.behaviour == "accuracy":
            value = (log_probs.argmax(-1) == part.answer).float()
        else:
            if part.distractor is None:
                raise ValueError(
                    f"circuit {circuit.name!r}: its probe names no distractor, which "
                    "'logit_difference' needs; use behaviour: accuracy"
                )
            pair = log_probs.gather(1, torch.stack([part.answer, part.distractor], 1))
            value = pair[:, 0] - pair[:, 1]
        values.append(mean_by_row(value, part).cpu())
    return torch.cat(values)


def retention(
    now: CircuitMeasurement, base: CircuitMeasurement, circuit: Circuit
) -> dict[str, float]:
    """Value now / value at the reference: identity, causal and behaviour, never mixed.

    Identity is the mean over roles of the ratio of the role's mean score; see
    `circuitkeep.compare` for the same with intervals.

    Returns:
        ``identity_retention``, ``causal_retention``, ``behaviour_retention``; NaN where the
        value at the reference is not positive, so that a ratio says nothing.
    """
    before, after = base.role_scores(circuit), now.role_scores(circuit)
    ratios = [ratio(after[role], before[role]) for role in before]
    return {
        "identity_retention": sum(ratios) / len(ratios),
        "causal_retention": ratio(now.effect_nats, base.effect_nats),
        "behaviour_retention": ratio(now.behaviour, base.behaviour),
    }


def ratio(now: Float[Tensor, " batch"], base: Float[Tensor, " batch"]) -> float:
    """Ratio of the means over rows, NaN if the base's mean is not positive."""
    reference = base.nanmean().item()
    return now.nanmean().item() / reference if reference > 0 else float("nan")
