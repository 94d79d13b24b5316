"""What a model does on a circuit's rows: everything that its checks look at, measured once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.causal.ablation import MEAN
from circuitkeep.causal.faithfulness import Knockouts
from circuitkeep.checks.geometry import geometry_evidence
from circuitkeep.checks.graphs import graph_evidence
from circuitkeep.checks.plan import Plan
from circuitkeep.evals.circuit import CircuitMeasurement, measure_circuit
from circuitkeep.graphs.answers import Influences
from circuitkeep.manifolds import ManifoldRows
from circuitkeep.probes import ProbeBatch
from circuitkeep.probing import probe_context, with_variables


@dataclass(frozen=True)
class Evidence:
    """One circuit in one model, on the rows of all seeds, one after the other; on the CPU.

    Attributes:
        measured: Scores, effect and behaviour per row.
        seed: Which of the plan's seeds a row is of, by its place.
        family: Of the prompts, where the probe has several kinds; else 0.
        kept: Log-probability of the answers, in nats, with all heads but the circuit's ablated,
            beyond what it is with all of them ablated; None if no check asks for faithfulness.
        whole: The same with none ablated.
        graphs: What influences each row's answer; None if no check asks for it.
        manifolds: Those that a check asks for, by name.
    """

    measured: CircuitMeasurement
    seed: Int[Tensor, " row"]
    family: Int[Tensor, " row"]
    kept: Float[Tensor, " row"] | None = None
    whole: Float[Tensor, " row"] | None = None
    graphs: tuple[Influences | None, ...] | None = None
    manifolds: Mapping[str, ManifoldRows] = field(default_factory=dict)


def make_rows(
    plan: Plan, backend: Backend, tokenizer: Any, seeds: Sequence[int] | None = None
) -> tuple[ProbeBatch, ...]:
    """The held-out rows of each seed, on the CPU.

    Args:
        plan: Names the probe, and how many rows.
        backend: The base model, or the tested one where there is none (own samples are drawn from
            it).
        tokenizer: Its tokenizer; None for probes of random tokens.
        seeds: Others than the plan's.

    Raises:
        CircuitError: If a head is outside the model.
        ValueError: If the prompts do not fit the model.
    """
    plan.circuit.check_model(backend.n_layers, backend.n_heads)
    context = probe_context(backend, tokenizer)
    chosen = plan.seeds if seeds is None else seeds
    batches = (plan.probe.batch(context, "held_out", plan.rows, seed) for seed in chosen)
    return tuple(with_variables(batch, plan.circuit.manifolds, context) for batch in batches)


def gather(plan: Plan, backend: Backend, rows: Sequence[ProbeBatch]) -> Evidence:
    """Measure what the plan's checks look at, and no more.

    Each seed's rows are measured by themselves: what stands in for an ablated head is its mean
    over them.

    Raises:
        ValueError: If a head is outside the model, the answers are as likely with all heads
            ablated as with none, so that there is nothing to be faithful to, or the model cannot
            be traced.
    """
    kinds = {check.kind for check in plan.checks}
    causal = bool({"causal", "retention"} & kinds)
    moved = [check.part for check in plan.checks if check.kind == "geometry"]
    measured = [measure_circuit(backend, plan.circuit, batch, causal) for batch in rows]
    kept = whole = None
    if "faithfulness" in kinds:
        parts = [_faithful(plan, backend, batch) for batch in rows]
        kept, whole = (torch.cat(values) for values in zip(*parts, strict=True))
    return Evidence(
        CircuitMeasurement(
            scores={
                role: torch.cat([one.scores[role] for one in measured])
                for role in measured[0].scores
            },
            effect_nats=torch.cat([one.effect_nats for one in measured]),
            behaviour=torch.cat([one.behaviour for one in measured]),
        ),
        torch.cat([torch.full((len(batch),), n) for n, batch in enumerate(rows)]),
        torch.cat([_family(batch) for batch in rows]),
        kept,
        whole,
        None if plan.graph is None else graph_evidence(plan.graph, backend, rows),
        geometry_evidence(plan.circuit, moved, backend, rows) if moved else {},
    )


def _faithful(
    plan: Plan, backend: Backend, batch: ProbeBatch
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    knockouts = Knockouts(backend, batch, MEAN, "log_prob_nats")
    empty = knockouts.scores(())
    return knockouts.scores(plan.circuit.heads) - empty, knockouts.scores(knockouts.heads) - empty


def _family(batch: ProbeBatch) -> Int[Tensor, " row"]:
    return torch.zeros(len(batch), dtype=torch.long) if batch.family is None else batch.family.cpu()
