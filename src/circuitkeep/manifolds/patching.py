"""Subspace patching: what a model does if it takes one value of a variable for another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Edits
from circuitkeep.circuits import Manifold
from circuitkeep.manifolds.rows import ManifoldRows, frame_of
from circuitkeep.probes import NO_VALUE


@dataclass(frozen=True)
class Subspace:
    """Some directions of the residual stream after a layer, and where classes lie among them.

    Attributes:
        layer: After which.
        frame: Orthonormal directions.
        points: Coordinates of the class means.
    """

    layer: int
    frame: Float[Tensor, "d k"]
    points: Float[Tensor, "class k"]

    @classmethod
    def of(cls, rows: ManifoldRows) -> Subspace:
        """A manifold's own: its principal components, as many as it names."""
        points = rows.means()
        frame = frame_of(points, rows.manifold.dimensions)
        return cls(rows.manifold.layer, frame.float(), (points @ frame).float())

    @classmethod
    def random(cls, rows: ManifoldRows, seed: int) -> Subspace:
        """A control: as many directions, drawn evenly from all of the stream's."""
        points = rows.means()
        generator = torch.Generator().manual_seed(seed)
        k = rows.manifold.dimensions
        drawn = torch.randn(points.shape[1], k, generator=generator, dtype=points.dtype)
        frame = torch.linalg.qr(drawn).Q
        return cls(rows.manifold.layer, frame.float(), (points @ frame).float())

    def patched(self, classes: Int[Tensor, "batch pos"]) -> Edits:
        """Set the coordinates to those of other classes' means; the rest of the stream stays.

        Args:
            classes: Which class each position is to be taken for; `NO_VALUE` to leave it alone.

        Raises:
            ValueError: If there is no such class.
        """
        if int(classes.max()) >= len(self.points):
            raise ValueError(
                f"class {int(classes.max())} is outside the manifold, which has {len(self.points)}"
            )

        def edit(own: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
            here = classes.to(own.device)
            return self._set(own, self.points.to(own)[here.clamp(min=0)], here != NO_VALUE)

        return Edits(resid={self.layer: edit})

    def ablated(self, here: Bool[Tensor, "batch pos"]) -> Edits:
        """Set the coordinates to the mean of all classes' at the positions `here`."""

        def edit(own: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
            return self._set(own, self.points.to(own).mean(0), here.to(own.device))

        return Edits(resid={self.layer: edit})

    def _set(self, own: Tensor, wanted: Tensor, here: Tensor) -> Tensor:
        frame = self.frame.to(own)
        return own + ((wanted - own @ frame) * here[..., None]) @ frame.mT


def shifted(
    manifold: Manifold, classes: Int[Tensor, "batch pos"], by: int
) -> Int[Tensor, "batch pos"]:
    """The classes `by` further on; `NO_VALUE` where the manifold ends before that."""
    moved = classes + by
    inside = (classes != NO_VALUE) & (moved >= 0) & (moved < manifold.classes)
    return moved.where(inside, NO_VALUE)
