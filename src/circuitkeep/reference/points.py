"""Where a row puts the manifolds of a circuit: few points, each the mean of several positions."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.circuits import Circuit
from circuitkeep.penalties.base import Need
from circuitkeep.probes import NO_VALUE, ProbeBatch, classes_of

MOST_POINTS = 16
"""Of a manifold: neighbouring classes are joined to so many stretches, because the stream at a
single position says more about its word than about the variable."""


def check_manifolds(circuit: Circuit, needs: Collection[Need]) -> None:
    """Refuse to hold manifolds of a circuit that has none.

    Raises:
        ValueError: Saying where to write them.
    """
    if "manifolds" in needs and not circuit.manifolds:
        raise ValueError(
            f"the penalty holds manifolds, and circuit {circuit.name!r} names none: add them to "
            "its file, e.g. manifolds: {count: {variable: position, layer: 1, values: [1, 30]}}, "
            "or leave GeometryDrift out"
        )


def stretches_of(
    batch: ProbeBatch, circuit: Circuit
) -> tuple[Int[Tensor, "batch manifold pos"], Bool[Tensor, "batch manifold point"]]:
    """Which point of each manifold a position belongs to, and which points a row has.

    Returns:
        `NO_VALUE` for positions of none; `MOST_POINTS` points, of which a manifold of few classes
        uses the first.

    Raises:
        ValueError: If the circuit has no manifolds, or one has fewer than two points in all rows.
    """
    check_manifolds(circuit, {"manifolds"})
    found = []
    for manifold in circuit.manifolds:
        classes = classes_of(manifold, batch.variables[manifold.variable])
        joined = classes * min(MOST_POINTS, manifold.classes) // manifold.classes
        found.append(joined.where(batch.mask & (classes != NO_VALUE), NO_VALUE))
    stretches = torch.stack(found, dim=1)
    present = _membership(stretches).any(-1)
    for manifold, points in zip(circuit.manifolds, present.any(0).sum(-1).tolist(), strict=True):
        if points < 2:
            raise ValueError(
                f"circuit {circuit.name!r}, manifold {manifold.name!r}: {manifold.variable} takes "
                f"{points} stretches of its values on {len(batch)} probe rows, and a manifold has "
                "two or more; give more rows, or other values"
            )
    return stretches, present


def points_of(
    stream: Float[Tensor, "batch manifold pos d_model"],
    stretches: Int[Tensor, "batch manifold pos"],
) -> Float[Tensor, "batch manifold point d_model"]:
    """Mean of the stream over the positions of each point, fp32 at least; 0 where it has none."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    belongs = _membership(stretches)
    counts = belongs.sum(-1, keepdim=True).clamp(min=1)
    with torch.autocast(stream.device.type, enabled=False):  # not in half precision
        return (belongs / counts).to(wide) @ wide


def _membership(
    stretches: Int[Tensor, "batch manifold pos"],
) -> Bool[Tensor, "batch manifold point pos"]:
    points = torch.arange(MOST_POINTS, device=stretches.device)
    return stretches[:, :, None] == points[:, None]
