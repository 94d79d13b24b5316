"""Which circuits survive which training: trained on (rows), probed on (columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from circuitkeep.circuits import Circuit, did_you_mean
from circuitkeep.compare.paired import KINDS, CircuitRows, estimate, shares
from circuitkeep.compare.report import Column, Interval, Transfer, TransferRow
from circuitkeep.evals.circuit import ratio
from circuitkeep.functional import mean_ratio_interval
from circuitkeep.probes import build_probe, describe


def varied(circuits: Sequence[Circuit], probes: Mapping[str, Mapping[str, Any]]) -> list[Circuit]:
    """The same circuits under further probes, named ``CIRCUIT, PROBE``.

    Args:
        circuits: Whose heads are probed.
        probes: Name -> settings. They change those of the circuit's own probe, and count for the
            circuits with a probe of that class that labels the roles; with a ``_target_`` they are
            a probe of their own, for every circuit whose roles it labels.

    Raises:
        ValueError: If settings are wrong, or fit no circuit.
    """
    found = []
    for name, settings in probes.items():
        fitting, mistake = [], ""
        for circuit in circuits:
            own = {} if "_target_" in settings else dict(circuit.probe)
            try:
                probe = {**own, **settings}
                circuit.check_labels(build_probe(probe).labels)
            except ValueError as error:
                mistake = mistake or str(error)
                continue
            other = replace(circuit, name=f"{circuit.name}, {name}", probe=probe, manifolds=())
            fitting.append(other)
        if not fitting:
            raise ValueError(f"transfer.probes.{name} fits no circuit: {mistake}")
        found += fitting
    return found


def transfer_matrix(
    probed: Sequence[Circuit],
    base: Mapping[str, CircuitRows],
    measured: Mapping[str, Mapping[str, CircuitRows]],
    groups: Mapping[str, Sequence[str]],
    trained_on: Mapping[str, str],
) -> Transfer:
    """Every checkpoint, or group of replicates, on every probe.

    Args:
        probed: Circuits, under their own and further probes.
        base: Of the base model, by the names of `probed`.
        measured: Checkpoint -> the same.
        groups: Name -> checkpoints that are replicates.
        trained_on: Checkpoint -> what it was trained on; empty if not known.
    """
    grouped = {name for members in groups.values() for name in members}
    of = {**groups, **{name: [name] for name in measured if name not in grouped}}
    rows = []
    for name, members in of.items():
        origins = {trained_on.get(member, "") for member in members}
        runs = [measured[member] for member in members]
        rows.append(
            TransferRow(
                name,
                # Replicates of different trainings are the user's own grouping.
                origins.pop() if len(origins) == 1 else "",
                {
                    circuit.name: {
                        kind: _share([run[circuit.name] for run in runs], base[circuit.name], kind)
                        for kind in KINDS
                    }
                    for circuit in probed
                },
            )
        )
    rows = [replace(row, trained_on=row.trained_on or row.name) for row in rows]
    order = list(dict.fromkeys(row.trained_on for row in rows))
    return Transfer(
        tuple(
            Column(
                circuit.name,
                describe(build_probe(circuit.probe)),
                {kind: _value(base[circuit.name], kind) for kind in KINDS},
            )
            for circuit in probed
        ),
        tuple(sorted(rows, key=lambda row: order.index(row.trained_on))),
    )


def _share(runs: Sequence[CircuitRows], base: CircuitRows, kind: str) -> tuple[float, Interval]:
    if len(runs) > 1:
        found = estimate(shares(runs, base, kind))
        return found.mean, (found.low, found.high)
    (run,) = runs
    now, before = _values(run, kind), _values(base, kind)
    ratios = [ratio(a, b) for a, b in zip(now, before, strict=True)]
    return sum(ratios) / len(ratios), mean_ratio_interval(torch.stack(now), torch.stack(before))


def _values(rows: CircuitRows, kind: str) -> list[torch.Tensor]:
    return list(rows.identity.values()) if kind == "identity" else [getattr(rows, kind)]


def _value(rows: CircuitRows, kind: str) -> float:
    means = [values.nanmean().item() for values in _values(rows, kind)]
    return sum(means) / len(means)


def check_origins(trained_on: Mapping[str, str], checkpoints: Sequence[str]) -> None:
    """Refuse a checkpoint that there is not.

    Raises:
        ValueError: Naming the nearest.
    """
    for name in trained_on:
        if name not in checkpoints:
            raise ValueError(
                f"transfer.trained_on: there is no checkpoint {name!r}"
                + did_you_mean(name, checkpoints)
            )
