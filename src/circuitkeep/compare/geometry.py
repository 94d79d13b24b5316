"""Manifolds of circuits in a comparison: how they moved, and the maps of the named heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.circuits import Circuit, Head
from circuitkeep.compare.moved import GeometryResult, ManifoldDescription, ManifoldResult
from circuitkeep.manifolds import ManifoldRows, frame_of, manifold_rows
from circuitkeep.manifolds.drift import FIGURES, drift_estimates, drift_of_halves
from circuitkeep.manifolds.head_drift import HeadMap, head_drift, head_transforms
from circuitkeep.probes import ProbeBatch

SHOWN = 3
"""Principal components of the base that the pictures have."""


class Geometries:
    """Measures the manifolds of circuits in one model after the other, the base first.

    Args:
        circuits: Those without manifolds are left out.
    """

    def __init__(self, circuits: Sequence[Circuit]) -> None:
        self._circuits = [circuit for circuit in circuits if circuit.manifolds]
        self._base: dict[str, _Measured] = {}

    def results(
        self, backend: Backend, batches: Mapping[str, ProbeBatch]
    ) -> dict[str, GeometryResult]:
        """By circuit; the first model that is asked about is the base.

        Args:
            backend: The model.
            batches: Circuit -> its rows, the same for every model.

        Raises:
            ValueError: If a class of values is on no row, or points do not span the dimensions.
        """
        found = {}
        for circuit in self._circuits:
            now = _Measured(
                manifold_rows(backend, batches[circuit.name], circuit.manifolds),
                _maps(backend, circuit),
            )
            base = self._base.setdefault(circuit.name, now)
            found[circuit.name] = GeometryResult(
                {name: _moved(base.rows[name], rows) for name, rows in now.rows.items()},
                {str(head): moved for head, moved in head_drift(base.maps, now.maps).items()},
            )
        return found

    def descriptions(self, circuit: str) -> dict[str, ManifoldDescription]:
        """What the manifolds of a circuit are in the base, by name."""
        base = self._base.get(circuit)
        return {} if base is None else {name: _described(rows) for name, rows in base.rows.items()}


@dataclass(frozen=True)
class _Measured:
    rows: dict[str, ManifoldRows]
    maps: dict[Head, HeadMap]


def _maps(backend: Backend, circuit: Circuit) -> dict[Head, HeadMap]:
    """None where the layout of the weights is not known; the manifolds need no weights."""
    try:
        return head_transforms(backend, circuit.heads)
    except ValueError:
        return {}


def _moved(base: ManifoldRows, now: ManifoldRows) -> ManifoldResult:
    points = base.means()
    frame = frame_of(points, SHOWN)
    shown = (now.means() - points.mean(0)) @ frame / _radius(points)
    return ManifoldResult(
        drift_estimates(base, now),
        tuple(tuple(point) for point in _three(shown).tolist()),
        now.explained,
    )


def _three(points: Float[Tensor, "class k"]) -> Float[Tensor, "class 3"]:
    """Points of few classes span fewer dimensions."""
    return torch.nn.functional.pad(points, (0, SHOWN - points.shape[1]))


def _radius(points: Float[Tensor, "class d"]) -> Float[Tensor, ""]:
    return (points - points.mean(0)).square().sum(1).mean().sqrt()


def _described(base: ManifoldRows) -> ManifoldDescription:
    manifold, points = base.manifold, base.means()
    centred = points - points.mean(0)
    seen = (centred @ frame_of(points, SHOWN)).square().sum() / centred.square().sum()
    null = drift_of_halves(base)
    return ManifoldDescription(
        variable=manifold.variable,
        layer=manifold.layer,
        values=tuple(manifold.value_of(number) for number in range(manifold.classes)),
        dimensions=manifold.dimensions,
        seen=seen.item(),
        null={name: getattr(null, name).item() for name in FIGURES},
    )
