"""The reference of a training: read where an earlier run left it, or captured of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuitkeep.capture import Backend
from circuitkeep.capture.fingerprints import fingerprint_tokenizer
from circuitkeep.circuits import Circuit
from circuitkeep.guard.subject import tokenizer_of
from circuitkeep.guard.training import Training, read_for_all
from circuitkeep.penalties import Sum
from circuitkeep.probes import Probe, build_probe
from circuitkeep.probing import probe_rows
from circuitkeep.reference import (
    Fingerprint,
    Reference,
    capture_reference,
    fingerprint_circuit,
    fingerprint_probe,
)


def base_reference(
    backend: Backend,
    training: Training,
    circuit: Circuit,
    penalty: Sum,
    probe: Probe | None,
    pool: tuple[int, int],
    tokenizer: Any,
    model_print: str,
    path: Path | None,
    resumed: bool,
) -> tuple[Reference, Path]:
    """What the base model did, and the file that keeps it; the same on all ranks.

    Args:
        backend: Of the model, which is the base unless `resumed`.
        training: Every process calls this.
        circuit: Whose heads are guarded.
        penalty: Says what is needed of them.
        probe: Of the rows, if not the circuit's own.
        pool: How many rows, and their seed.
        tokenizer: See `tokenizer_of`.
        model_print: Fingerprint of the base model; not used if `resumed`.
        path: Where it is kept; None for a name under the training's folder.
        resumed: The reference must be there: the model is no longer the base.

    Raises:
        FileNotFoundError: If it must be there and is not.
        ValueError: If what is there was made of another model, tokenizer, probe or circuit.
    """
    tokenizer = tokenizer_of(backend, tokenizer)
    probe = probe or build_probe(circuit.probe)
    needs = [*sorted(penalty.needs), *(["all"] * penalty.all_queries)]
    fingerprint = Fingerprint(
        model="" if resumed else model_print,
        tokenizer=fingerprint_tokenizer(tokenizer),
        probe=fingerprint_probe(probe, *pool),
        circuit=fingerprint_circuit(circuit),
        needs=",".join(needs),
    )
    if path is None:
        name = f"{circuit.name}-{fingerprint.short}.safetensors"
        path = training.folder / "references" / name
    may_differ = ("model",) if resumed else ()
    kept = read_for_all(path, fingerprint, may_differ, resumed, training)
    if kept is not None:
        return kept.to(backend.device), path
    rows = probe_rows(circuit, backend, tokenizer, "train", *pool, probe)
    reference = capture_reference(
        backend, circuit, rows, penalty.needs, penalty.all_queries, fingerprint
    )
    penalty.check_pool(reference.rows.labels)
    if training.is_first:
        reference.save(path)
    return reference, path
