"""Holding what heads write."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional import cosine_distance, mean_over_rows, relative_squared_error
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared


class HeadOutputDrift(Penalty):
    r"""How far head outputs have moved from the reference's.

    .. math:: \frac{1}{BH} \sum_{bh} \frac{1}{|Q_{bh}|} \sum_{q \in Q_{bh}} d(r_{bhq}, y_{bhq})

    ``kind`` is the dimensionless distance :math:`d` of output ``y`` from reference ``r``:
    "relative_squared", the squared error over the mean square of the head's reference in that row
    (1 when a head falls silent), or "cosine", in [0, 2]. ``site`` is where: "z", before W_O, or
    "result", the write into the residual stream. ``queries`` is ``Q``: "target", those with a
    target key, or "all" real ones.

    Invariance: "cosine" under positive rescaling of an output, "relative_squared" only when now
    and reference are rescaled together; "result" under a change of basis between W_V and W_O,
    which "z" counts as drift. The gradient reaches v, and q and k through the pattern, of the
    guarded heads and all they read; o at "result" only.

    Blind, at "z", to W_O; at both sites to what later layers make of the output, and to where the
    head attends so long as the same comes out of it. "cosine" is blind to a head that fades.

    Raises:
        ValueError: If ``site``, ``kind`` or ``queries`` is none of these.
    """

    def __init__(
        self, site: str = "z", kind: str = "relative_squared", queries: str = "target"
    ) -> None:
        super().__init__()
        check_choice("site", site, ("z", "result"))
        check_choice("kind", kind, ("relative_squared", "cosine"))
        check_choice("queries", queries, ("target", "all"))
        self.site: Need = "z" if site == "z" else "result"
        self.kind = kind
        self.queries = queries

    @property
    def needs(self) -> frozenset[Need]:
        """The outputs at ``site``."""
        return frozenset({self.site})

    @property
    def all_queries(self) -> bool:
        """Whether ``queries`` is "all"."""
        return self.queries == "all"

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The dimensionless drift."""
        kept, current = compared(now, reference, "output")
        counted = labels.counted(self.queries)
        if self.kind == "cosine":
            values = cosine_distance(kept, current)
        else:
            values = relative_squared_error(kept, current, counted)
        return mean_over_rows(values, counted)
