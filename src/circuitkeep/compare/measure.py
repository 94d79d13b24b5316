"""From models to a `Report`: every checkpoint measured on the same held-out rows as the base."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.circuits import Circuit
from circuitkeep.compare.geometry import Geometries
from circuitkeep.compare.graphs import GraphQuestion
from circuitkeep.compare.groups import check_groups, replicate_groups
from circuitkeep.compare.heads import contributions, moved_heads, rankings
from circuitkeep.compare.origins import trained_on
from circuitkeep.compare.paired import CircuitRows
from circuitkeep.compare.prompts import Prompt, chosen_heads, pattern_of, read_prompt, texts
from circuitkeep.compare.report import (
    CheckpointResult,
    CircuitDescription,
    CircuitResult,
    Interval,
    Report,
)
from circuitkeep.compare.trajectory import in_order
from circuitkeep.compare.transfer import check_origins, transfer_matrix, varied
from circuitkeep.evals import CircuitMeasurement, evaluate_capability, measure_circuit, retention
from circuitkeep.evals.harness import Harness
from circuitkeep.functional import mean_ratio_interval
from circuitkeep.probes import ProbeBatch, build_probe, describe
from circuitkeep.probing import probe_rows

Batches = Iterable[Mapping[str, Any]]
ABLATION = (
    "mean ablation of the named heads jointly: their outputs are replaced by the mean over the "
    "same rows and positions of the same model"
)


def compare(
    base: str | os.PathLike[str],
    checkpoints: Mapping[str, str | os.PathLike[str]],
    circuits: Sequence[Circuit],
    tokenizer: Any = None,
    datasets: Mapping[str, Batches] | None = None,
    rows: int = 256,
    seed: int = 10_000,
    command: str = "",
    progress: Callable[[str], None] = lambda _: None,
    trajectory: bool = False,
    prompts: Sequence[str] = (),
    replicates: Mapping[str, Sequence[str]] | None = None,
    probes: Mapping[str, Mapping[str, Any]] | None = None,
    origins: Mapping[str, str] | None = None,
    harness: Harness | None = None,
    graphs: GraphQuestion | None = None,
) -> Report:
    """Measure a base model and its checkpoints on the same held-out rows and data sets.

    Models are loaded one after the other, so that memory holds one at a time.

    Args:
        base: Model directory or hub name.
        checkpoints: Name -> model directory, hub name, or Lightning ``.ckpt`` file.
        circuits: What to measure.
        tokenizer: The base model's; None for models without text.
        datasets: Name -> batches, iterated once per model.
        rows: Held-out probe rows per circuit.
        seed: Of those rows.
        command: Put into the report, so that it can be made again.
        progress: Told the name of every model before it is measured.
        trajectory: The checkpoints are one training's, and are shown by the steps that their names
            tell; see `circuitkeep.compare.trajectory`.
        prompts: Texts on which to show where heads attend; see `circuitkeep.compare.prompts`.
        replicates: Group -> its checkpoints, in the order of their seeds; see
            `circuitkeep.compare.groups`.
        probes: Further probes of the circuits' heads; see `circuitkeep.compare.transfer.varied`.
        origins: Checkpoint -> what it was trained on, where no config beside it tells.
        harness: Tasks of lm-evaluation-harness; a checkpoint's answers are kept for the next time.
        graphs: How the attribution graphs of answers are compared; not at all if None.

    Raises:
        FileNotFoundError: If a model is missing; before anything is measured.
        ValueError: If a circuit does not fit the base model, a checkpoint is of another shape,
            there is nothing to compare, a checkpoint of a trajectory tells no step, or a prompt, a
            group or a further probe cannot be.
    """
    datasets = datasets or {}
    if not circuits:
        raise ValueError("nothing to compare: name at least one circuit")
    names = [circuit.name for circuit in circuits]
    if len(set(names)) < len(names):
        raise ValueError(f"two circuits have the same name: {', '.join(names)}")
    if not checkpoints:
        raise ValueError("nothing to compare with the base: name at least one checkpoint")
    for path in checkpoints.values():
        # A wrong path shows now, not after the first models have been measured for minutes.
        text = os.fspath(path)
        looks_local = text.startswith((".", "/", "~")) or text.endswith(".ckpt")
        if looks_local and not os.path.exists(os.path.expanduser(text)):
            raise FileNotFoundError(f"there is no checkpoint at {text}")
    steps = in_order(checkpoints) if trajectory else {}
    checkpoints = dict(steps.values()) or checkpoints
    replicates, origins = replicates or {}, origins or {}
    check_groups(replicates, list(checkpoints))
    check_origins(origins, list(checkpoints))
    probed = [*circuits, *varied(circuits, probes or {})]
    tokens = [read_prompt(tokenizer, text) for text in prompts]
    if harness is not None:
        harness.prepare(tokenizer)
    progress("base")
    backend = attach(load_checkpoint(base, base))
    shown = chosen_heads(backend, circuits, tokens, 1 + len(checkpoints)) if tokens else ()
    batches = {
        circuit.name: probe_rows(circuit, backend, tokenizer, "held_out", rows, seed)
        for circuit in probed
    }
    sizes = _sizes(backend)
    before = _measure(backend, probed, batches)
    attended = [[pattern_of(backend, each, shown) for each in tokens]]
    result, methods = _result("base", base, backend, before, before, circuits, batches, datasets)
    asked = {circuit.name: batches[circuit.name] for circuit in circuits}
    geometries = Geometries(circuits)

    def completed(result: CheckpointResult, backend: Backend) -> CheckpointResult:
        traced = ({}, None) if graphs is None else graphs.result(backend, asked)
        tasks = {} if harness is None else harness.evaluate(backend.model, tokenizer, keep=True)
        moved = geometries.results(backend, asked)
        return replace(result, tasks=tasks, graphs=traced[0], explained=traced[1], geometry=moved)

    result = completed(result, backend)
    results: dict[str, CheckpointResult] = {}
    kept: dict[str, dict[str, CircuitRows]] = {}
    for name, path in checkpoints.items():
        progress(name)
        del backend
        gc.collect()
        backend = attach(load_checkpoint(path, base))
        _check_same_kind(backend, sizes, name, path)
        now = _measure(backend, probed, batches)
        measured, _ = _result(name, path, backend, now, before, circuits, batches, datasets)
        results[name] = completed(measured, backend)
        kept[name] = _rows(now, probed)
        attended.append([pattern_of(backend, each, shown) for each in tokens])
    rows_of_base = _rows(before, probed)
    return Report(
        base=result,
        checkpoints=tuple(results.values()),
        circuits={
            c.name: _description(c, batches[c.name], seed, methods[c.name], geometries)
            for c in circuits
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        versions={name: version(name) for name in ("circuitkeep", "torch", "transformers")},
        steps=tuple(steps),
        prompts=tuple(
            Prompt(text, texts(tokenizer, each), tuple(map(str, shown)), patterns)
            for text, each, patterns in zip(
                prompts, tokens, zip(*attended, strict=True), strict=True
            )
        ),
        replicates=replicate_groups(replicates, circuits, rows_of_base, kept, results),
        transfer=transfer_matrix(
            probed,
            rows_of_base,
            kept,
            replicates,
            {name: origins.get(name) or trained_on(path) for name, path in checkpoints.items()},
        )
        if len(probed) > 1
        else None,
        graph_parts="" if graphs is None else graphs.parts,
    )


def _sizes(backend: Backend) -> dict[str, int]:
    return {
        "layers": backend.n_layers,
        "heads per layer": backend.n_heads,
        "tokens in its vocabulary": backend.vocab_size,
    }


def _check_same_kind(
    backend: Backend, base: Mapping[str, int], name: str, path: str | os.PathLike[str]
) -> None:
    for what, number in _sizes(backend).items():
        # Tokens that a fine-tuning added do no harm.
        if number < base[what] or (number > base[what] and "tokens" not in what):
            raise ValueError(
                f"checkpoint {name!r} ({os.fspath(path)}) is no checkpoint of the base model: it "
                f"has {number} {what}, the base {base[what]}"
            )


def _measure(
    backend: Backend, circuits: Sequence[Circuit], batches: Mapping[str, ProbeBatch]
) -> dict[str, CircuitMeasurement]:
    return {c.name: measure_circuit(backend, c, batches[c.name]) for c in circuits}


def _rows(
    measured: Mapping[str, CircuitMeasurement], circuits: Sequence[Circuit]
) -> dict[str, CircuitRows]:
    return {c.name: CircuitRows.of(measured[c.name], c) for c in circuits}


def _result(
    name: str,
    path: str | os.PathLike[str],
    backend: Backend,
    now: Mapping[str, CircuitMeasurement],
    before: Mapping[str, CircuitMeasurement],
    circuits: Sequence[Circuit],
    batches: Mapping[str, ProbeBatch],
    datasets: Mapping[str, Batches],
) -> tuple[CheckpointResult, dict[str, str]]:
    """What a model keeps and can do; and for each circuit, how its heads' writes were measured."""
    written = {c.name: contributions(backend, c, batches[c.name]) for c in circuits}
    result = CheckpointResult(
        name=name,
        path=os.fspath(path),
        capability={
            key: evaluate_capability(backend.model, data) for key, data in datasets.items()
        },
        circuits={
            c.name: circuit_result(now[c.name], before[c.name], c, written[c.name][0])
            for c in circuits
        },
    )
    return result, {circuit: method for circuit, (_, method) in written.items()}


def circuit_result(
    now: CircuitMeasurement,
    before: CircuitMeasurement,
    circuit: Circuit,
    written: Mapping[str, float],
) -> CircuitResult:
    """Retentions with 95% bootstrap intervals over rows, each row paired with the base's.

    What each named head writes to the answer's logit is passed on as `written`.
    """
    kept = retention(now, before, circuit)
    after_scores, before_scores = now.role_scores(circuit), before.role_scores(circuit)
    return CircuitResult(
        identity_retention=kept["identity_retention"],
        causal_retention=kept["causal_retention"],
        behaviour_retention=kept["behaviour_retention"],
        identity_interval=_interval(
            [after_scores[role] for role in before_scores], list(before_scores.values())
        ),
        causal_interval=_interval([now.effect_nats], [before.effect_nats]),
        behaviour_interval=_interval([now.behaviour], [before.behaviour]),
        causal_effect_nats=now.effect_nats.nanmean().item(),
        behaviour=now.behaviour.nanmean().item(),
        role_scores={
            role.name: {str(head): now.score(role.name, head) for head in role.heads}
            for role in circuit.roles
        },
        scores={
            role: tuple(tuple(layer) for layer in scores.nanmean(0).tolist())
            for role, scores in now.scores.items()
        },
        moved=moved_heads(circuit, now, before),
        rankings=rankings(circuit, now, before),
        contributions=written,
    )


def _interval(
    now: Sequence[Float[Tensor, " batch"]], before: Sequence[Float[Tensor, " batch"]]
) -> Interval:
    return mean_ratio_interval(torch.stack(list(now)), torch.stack(list(before)))


def _description(
    circuit: Circuit, batch: ProbeBatch, seed: int, written: str, geometries: Geometries
) -> CircuitDescription:
    return CircuitDescription(
        roles={role.name: tuple(str(head) for head in role.heads) for role in circuit.roles},
        behaviour=circuit.behaviour,
        source=circuit.source,
        probe=f"{describe(build_probe(circuit.probe))}, held-out split",
        rows=len(batch),
        seed=seed,
        ablation=ABLATION,
        contribution=written,
        manifolds=geometries.descriptions(circuit.name),
    )
