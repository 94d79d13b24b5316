"""Every run measured on the same held-out rows, row by row, once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from circuitkeep import __version__
from circuitkeep.capture import Backend, attach
from circuitkeep.capture.models import load_model
from circuitkeep.circuits import Circuit
from circuitkeep.compare.paired import CircuitRows
from circuitkeep.evals import measure_circuit
from circuitkeep.files import replacing
from circuitkeep.probes import ProbeBatch
from circuitkeep.probing import probe_rows
from circuitkeep.sweeps.collect import Run
from circuitkeep.sweeps.record import fingerprint

FOLDER = "measured"

Measured = dict[str, CircuitRows]
"""Circuit -> its rows."""


def measure_runs(
    folder: Path,
    runs: Sequence[Run],
    circuits: Sequence[Circuit],
    load_base: Callable[[], tuple[Any, Any]],
    base_name: Mapping[str, Any],
    rows: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Measured, dict[str, Measured]]:
    """Measure the base model and every run, one model in memory at a time.

    What was measured is kept in ``measured/`` of each run, and of `folder` for the base, and is
    not measured again.

    Args:
        folder: Of the sweep.
        runs: Finished ones.
        circuits: What to measure.
        load_base: Gives the base model and its tokenizer.
        base_name: Tells base models apart: the settings they come from.
        rows: Held-out probe rows per circuit.
        seed: Of those rows.
        progress: Told what is being measured.

    Returns:
        Of the base, and of each run by its name.

    Raises:
        ValueError: If a circuit does not fit the base model.
    """
    probed: dict[str, ProbeBatch] = {}

    def batches() -> Mapping[str, ProbeBatch]:
        if not probed:
            model, tokenizer = load_base()
            backend = attach(model)
            for circuit in circuits:
                probed[circuit.name] = probe_rows(
                    circuit, backend, tokenizer, "held_out", rows, seed
                )
        return probed

    def measured(where: Path, load: Callable[[], Any], **identity: Any) -> Measured:
        found: Measured = {}
        backend: Backend | None = None
        for circuit in circuits:
            key = fingerprint(
                {
                    "circuit": asdict(circuit),
                    "base": dict(base_name),
                    "rows": rows,
                    "seed": seed,
                    "version": __version__,
                    **identity,
                }
            )
            path = where / FOLDER / f"{circuit.name}-{key[:12]}.safetensors"
            kept = _read(path)
            if kept is None:
                batch = batches()[circuit.name]
                backend = attach(load()) if backend is None else backend
                kept = _measure(backend, circuit, batch)
                _write(path, kept)
            found[circuit.name] = kept
        del backend
        gc.collect()
        return found

    progress("the base")
    base = measured(folder, lambda: load_base()[0])
    of_runs = {}
    for run in runs:
        progress(run.name)
        of_runs[run.name] = measured(
            run.folder,
            lambda run=run: load_model(run.folder / "model"),
            run=run.record.fingerprint,
            ended=run.record.ended,
        )
    return base, of_runs


def _measure(backend: Backend, circuit: Circuit, batch: ProbeBatch) -> CircuitRows:
    return CircuitRows.of(measure_circuit(backend, circuit, batch), circuit)


def _write(path: Path, rows: CircuitRows) -> None:
    tensors = {f"identity/{role}": values for role, values in rows.identity.items()}
    tensors |= {"causal": rows.causal, "behaviour": rows.behaviour}
    with replacing(path) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)


def _read(path: Path) -> CircuitRows | None:
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):  # there is none, or none that is whole
        return None
    identity = {k.removeprefix("identity/"): v for k, v in tensors.items() if "/" in k}
    return CircuitRows(identity, tensors["causal"], tensors["behaviour"])
