"""Making a circuit's probe rows for a given model, with every mismatch refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.sampling import sample_tokens, special_tokens
from circuitkeep.circuits import Circuit, CircuitError, Manifold, did_you_mean
from circuitkeep.probes import (
    TEXT_VARIABLES,
    Probe,
    ProbeBatch,
    ProbeContext,
    Split,
    build_probe,
    text_variables,
)


def probe_context(backend: Backend, tokenizer: Any = None) -> ProbeContext:
    """What probes may know of a model and its tokenizer."""
    bos, special = special_tokens(backend.model, tokenizer)

    def sample(rows: int, length: int, seed: int) -> Int[Tensor, "rows length"]:
        return sample_tokens(backend, rows, length, seed, bos).cpu()

    return ProbeContext(
        vocab_size=backend.vocab_size,
        context_length=backend.context_length,
        bos_token_id=bos,
        special_token_ids=special,
        tokenizer=tokenizer,
        sample=sample,
    )


def probe_rows(
    circuit: Circuit,
    backend: Backend,
    tokenizer: Any,
    split: Split,
    rows: int,
    seed: int,
    probe: Probe | None = None,
) -> ProbeBatch:
    """Rows of a circuit's probe, on the CPU, for a model that has the circuit's heads.

    Args:
        circuit: Names heads, roles and probe.
        backend: The base model (own samples are drawn from it).
        tokenizer: Its tokenizer; None for probes of random tokens.
        split: Whether the rows feed a penalty or a reported number.
        rows: How many.
        seed: The same seed gives the same rows.
        probe: Another probe than the circuit's own, labelling the same roles.

    Raises:
        ValueError: If a head is outside the model, the probe does not label a role or cannot
            measure the behaviour, or its prompts do not fit the model.
    """
    circuit.check_model(backend.n_layers, backend.n_heads)
    if probe is None:
        probe = build_probe(circuit.probe)
        if circuit.behaviour not in probe.behaviours:
            raise ValueError(
                f"circuit {circuit.name!r}: {type(probe).__name__} cannot measure "
                f"{circuit.behaviour!r}" + did_you_mean(circuit.behaviour, probe.behaviours)
            )
    circuit.check_labels(probe.labels)
    context = probe_context(backend, tokenizer)
    batch = probe.batch(context, split, rows, seed)
    return with_variables(batch, circuit.manifolds, context)


def with_variables(
    batch: ProbeBatch, manifolds: Iterable[Manifold], context: ProbeContext
) -> ProbeBatch:
    """Rows with the variables of the manifolds that their probe does not know itself.

    Raises:
        CircuitError: If a variable is neither known to the probe nor told by any text, or there is
            no tokenizer to tell it.
    """
    found = dict(batch.variables)
    for manifold in manifolds:
        name = manifold.variable
        if name in found:
            continue
        keys = ("manifolds", manifold.name, "variable")
        known = (*batch.variables, *TEXT_VARIABLES)
        if name not in known:
            message = f"manifold {manifold.name!r}: unknown variable {name!r}"
            raise CircuitError(message + did_you_mean(name, known), *keys)
        try:
            found |= text_variables([name], batch.tokens, batch.mask, context)
        except ValueError as error:
            raise CircuitError(f"manifold {manifold.name!r}: {error}", *keys) from error
    return replace(batch, variables=found)


def roles_of(probe: Probe, roles: Sequence[str] | None) -> list[str]:
    """The roles asked for; all that the probe labels, if None.

    Raises:
        ValueError: If the probe does not label one, naming the nearest.
    """
    wanted = list(probe.labels if roles is None else roles)
    for role in wanted:
        if role not in probe.labels:
            raise ValueError(
                f"{type(probe).__name__} does not label the role {role!r}"
                + did_you_mean(role, probe.labels)
            )
    return wanted
