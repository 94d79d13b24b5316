"""Manifolds of a variable in the residual stream: where its values lie, and how they move."""

from circuitkeep.manifolds.patching import Subspace, shifted
from circuitkeep.manifolds.rows import (
    ManifoldRows,
    Samples,
    check_variables,
    frame_of,
    manifold_rows,
    manifold_samples,
)

__all__ = [
    "ManifoldRows",
    "Samples",
    "Subspace",
    "check_variables",
    "frame_of",
    "manifold_rows",
    "manifold_samples",
    "shifted",
]
