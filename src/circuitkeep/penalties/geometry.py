"""Holding where the values of a variable lie in the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.procrustes import distance_after_fit
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared

# Fewer points lie upon those of the base after such a fit, wherever they are.
_FEWEST = {"shape": 3, "rigid": 2, "place": 1}


class GeometryDrift(Penalty):
    r"""How far the circuit's manifolds have moved from the reference's, or changed their shape.

    A manifold's points are the means of the residual stream after its layer, over the positions of
    a row whose values lie in the same of at most 16 stretches: a whole curve, in every row by
    itself.

    .. math:: \frac{1}{BM} \sum_{bm} \frac{1}{\sigma_m^2 n_{bm}}
              \min_{f \in F} \sum_i \lVert x_{bmi} - f(y_{bmi}) \rVert^2

    with ``n`` points ``y`` now and ``x`` at the reference, over the same tokens, so that what the
    words put there is the same in both; and :math:`\sigma_m^2` the mean squared distance of the
    manifold's points from their centre, over the whole pool. ``kind`` says which motions ``F`` are
    no drift:

    - "shape": rotation, reflection, translation and scale (Procrustes);
    - "rigid": rotation, reflection and translation; the size is held;
    - "place": none; distances are taken within the subspace that the manifold has at the reference.

    Dimensionless: 1 or more when all points fall into one.

    Invariant as ``kind`` says, row by row: each row may turn by itself. Fitted to single rows, it
    is a mean over rows, whatever process has them. The gradient reaches everything up to the
    manifolds' layers, and nothing above.

    Blind to what later layers read of the manifold: they must turn with it, which the task's loss
    or another term must see to. Blind within a stretch of values, and to values that do not occur
    in the row. A variable of one value per row (a line width) has no shape within a row: "shape"
    wants three points in some row, "rigid" two, and a row with fewer adds 0; "place" takes one.
    What else the stream has at these positions is evened out by the means only in part: "shape"
    and "rigid" hold the rest of it too, because a subspace that may turn is not known; "place"
    only what lies in the subspace, and is blind to all that leaves it.

    Raises:
        ValueError: If ``kind`` is none of these; when the reference is made, if the circuit has no
            manifolds, or one has too few points in every row.

    Source:
        Gower 1975, Psychometrika 40, for the fit; Gurnee et al. 2025, arXiv:2601.04480, for the
        manifolds.
    """

    def __init__(self, kind: str = "shape") -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_FEWEST))
        self.kind = kind

    @property
    def needs(self) -> frozenset[Need]:
        """The points of the manifolds."""
        return frozenset({"manifolds"})

    def check_pool(self, labels: Labels) -> None:
        """Refuse manifolds that have too few points in every row of the pool."""
        assert labels.point_mask is not None
        most = labels.point_mask.sum(-1).amax(0).tolist()
        for number, points in enumerate(most):
            if points < _FEWEST[self.kind]:
                raise ValueError(
                    f"GeometryDrift(kind={self.kind!r}) fits every row by itself, and in no row of "
                    f"the pool does manifold number {number + 1} of the circuit have more than "
                    f"{points} points, of {_FEWEST[self.kind]} that it takes: its variable hardly "
                    "changes within a row; use kind='place', or leave the manifold out"
                )

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The dimensionless drift."""
        kept, current = compared(now, reference, "points")
        assert labels.point_mask is not None
        assert reference.spread is not None
        assert reference.frames is not None
        present = labels.point_mask
        if self.kind == "place":
            moved = (current.double() - kept.double()) @ reference.frames.detach().double()
            distance = (moved.square().sum(-1) * present).sum(-1)
        else:
            distance = distance_after_fit(current, kept, present, self.kind == "shape")
        unit = present.sum(-1).clamp(min=1) * reference.spread.detach().to(distance)
        drift = (distance / unit).sum() / max(distance.numel(), 1)
        return drift.to(torch.promote_types(current.dtype, torch.float32))
