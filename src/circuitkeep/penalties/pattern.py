"""Holding where heads attend."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional import mean_over_rows, pattern_js, pattern_kl, pattern_squared_error
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared

_DIVERGENCES = {"kl": pattern_kl, "js": pattern_js, "squared": pattern_squared_error}


class PatternDivergence(Penalty):
    r"""How far attention has moved from the reference's.

    .. math:: \frac{1}{BH} \sum_{bh} \frac{1}{|Q_{bh}|} \sum_{q \in Q_{bh}} d(R_{bhq}, A_{bhq})

    ``kind`` is the divergence :math:`d` of pattern ``A`` from reference ``R``: "kl" and "js" in
    nats, "squared" dimensionless in [0, 2]. ``queries`` is ``Q``: "target", those with a target
    key, or "all" real ones, of which many attend to BOS and say little.

    Invariant under every change of the value path, and of QK that leaves the patterns as they are.
    The gradient reaches q and k of the guarded heads, and all they read.

    Blind to the value path: a head may attend as before and move something else (W_V, W_O), or be
    outvoted by a new path. A key whose attention has underflowed to 0 no longer pulls back.

    Raises:
        ValueError: If ``kind`` or ``queries`` is none of these.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928 (attention transfer) for "squared"; Lin 1991,
        "Divergence measures based on the Shannon entropy" for "js".
    """

    def __init__(self, kind: str = "kl", queries: str = "target") -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_DIVERGENCES))
        check_choice("queries", queries, ("target", "all"))
        self.kind = kind
        self.queries = queries

    @property
    def needs(self) -> frozenset[Need]:
        """Patterns."""
        return frozenset({"pattern"})

    @property
    def all_queries(self) -> bool:
        """Whether ``queries`` is "all"."""
        return self.queries == "all"

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The divergence in the unit of ``kind``."""
        values = _DIVERGENCES[self.kind](*compared(now, reference, "pattern"))
        return mean_over_rows(values, labels.counted(self.queries))
