"""The check ``geometry``: whether manifolds keep the shape, or the place, that they have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from circuitkeep.capture import Backend
from circuitkeep.circuits import Circuit, CircuitError, did_you_mean
from circuitkeep.manifolds import ManifoldRows, manifold_rows
from circuitkeep.manifolds.drift import Estimate, drift_estimates, moved_classes
from circuitkeep.probes import ProbeBatch

SHAPE, PLACE = "shape", "place"
_SHOWN = 3


def read_geometry_tests(circuit: Circuit) -> dict[str, float]:
    """Part of a check -> its threshold, of ``tests.geometry``.

    A part is the name of a manifold, for its shape, or ``NAME.place``.

    Raises:
        CircuitError: For what is unknown, of the wrong kind or out of range.
    """
    asked = circuit.tests.get("geometry")
    if asked is None:
        return {}
    known = [manifold.name for manifold in circuit.manifolds]
    where = ("tests", "geometry")
    if not known:
        raise CircuitError(
            "tests.geometry is about the circuit's manifolds, and it has none; name them under "
            "the key 'manifolds'",
            *where,
        )
    if not isinstance(asked, Mapping):
        message = f"tests: 'geometry' must map {', '.join(known)} to shares, got {asked!r}"
        raise CircuitError(message, *where)
    found = {}
    for name, value in asked.items():
        if name not in known:
            message = f"tests.geometry: unknown key {name!r}" + did_you_mean(str(name), known)
            raise CircuitError(message, *where, str(name))
        if value is None:
            continue
        if not isinstance(value, Mapping):
            found[name] = _share(value, name)
            continue
        for kind, share in value.items():
            if kind not in (SHAPE, PLACE):
                message = f"tests.geometry.{name}: unknown key {kind!r}"
                raise CircuitError(
                    message + did_you_mean(str(kind), (SHAPE, PLACE)), *where, name, str(kind)
                )
            if share is not None:
                found[name if kind == SHAPE else f"{name}.{kind}"] = _share(share, name, kind)
    return found


def _share(value: Any, *keys: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise CircuitError(
            f"{'.'.join(('tests', 'geometry', *keys))} must be a share above 0 and up to 1: how "
            f"much of the manifold's {keys[1] if len(keys) > 1 else SHAPE} is kept; got {value!r}",
            *("tests", "geometry", *keys),
        )
    return float(value)


def geometry_evidence(
    circuit: Circuit, parts: Iterable[str], backend: Backend, rows: Sequence[ProbeBatch]
) -> dict[str, ManifoldRows]:
    """The manifolds that some parts are about, by name, on the rows of all seeds.

    Raises:
        CircuitError: If a class of values is on no row.
    """
    names = {part.partition(".")[0] for part in parts}
    wanted = [manifold for manifold in circuit.manifolds if manifold.name in names]
    measured = [manifold_rows(backend, batch, wanted) for batch in rows]
    return {one.name: _joined([each[one.name] for each in measured]) for one in wanted}


def kept(part: str, base: ManifoldRows, now: ManifoldRows) -> tuple[Estimate, str]:
    """What a part is about, and which classes have moved most, in a sentence."""
    strict = part.endswith(f".{PLACE}")
    far = ", ".join(
        f"{value:g} ({distance:.2f})"
        for value, distance in moved_classes(base, now, strict)[:_SHOWN]
    )
    found = drift_estimates(base, now)[PLACE if strict else SHAPE]
    if math.isnan(found.low):
        return found, "what is seen of it is no more than the noise of the prompts: give more rows"
    return found, f"{base.manifold.variable} {far} moved most, in units of the manifold's radius"


def unit(part: str) -> str:
    """What is measured, in words."""
    name, _, kind = part.partition(".")
    if kind:
        return f"of where {name} lay in the base, in the stream's own basis"
    return f"of the shape of {name} in the base, whatever its place, size and direction"


def _joined(parts: Sequence[ManifoldRows]) -> ManifoldRows:
    return replace(
        parts[0],
        sums=torch.cat([part.sums for part in parts]),
        counts=torch.cat([part.counts for part in parts]),
        squares=sum(part.squares for part in parts),
    )
