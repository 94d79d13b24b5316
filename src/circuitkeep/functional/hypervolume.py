"""How much of the plane of cost and gain a set of settings reaches: one number per method."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hypervolume(
    cost: Float[Tensor, " point"], gain: Float[Tensor, " point"], most: float
) -> Float[Tensor, ""]:
    r"""Share of :math:`[0, c_{max}] \times [0, 1]` that some point dominates.

    .. math:: \frac{1}{c_{max}} \int_0^{c_{max}} \max(0, \max_{i: c_i \le c} \min(g_i, 1)) \, dc

    The reference point is the worst corner: cost `most`, gain 0. A cost below 0 counts as 0, a
    gain above 1 as 1, and a point that costs `most` or more reaches nothing.

    Args:
        cost: Of each point, in any unit; less is better.
        gain: Of each point; more is better.
        most: The cost from which on a point is worth nothing, in the unit of `cost`.

    Returns:
        From 0 to 1; 1 only if some point has gain 1 at no cost.

    Raises:
        ValueError: If `most` is not positive, or a value is not finite.

    Source:
        Zitzler & Thiele 1998, doi:10.1007/BFb0056872, "size of the space covered".
    """
    if not most > 0:
        raise ValueError(f"most must be positive, got {most}")
    if not bool(cost.isfinite().all() & gain.isfinite().all()):
        raise ValueError("every cost and gain must be finite: leave out runs that diverged")
    order = cost.argsort()
    edges = cost[order].clamp(0, most)
    # From each point's cost to the next one's, the best gain so far can be had.
    widths = torch.cat([edges, edges.new_tensor([most])]).diff()
    return (widths * gain[order].clamp(0, 1).cummax(0).values).sum() / most
