"""Holding what heads are, whatever the prompt."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.weights import product_drift
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared


class HeadWeightDrift(Penalty):
    r"""How far the heads' QK and OV circuits have moved from the reference's; no pass is run.

    .. math:: \frac{1}{H} \sum_h \frac12 \left(
              \frac{\lVert W_Q W_K^\top - W_{Q0} W_{K0}^\top \rVert_F^2}
                   {\lVert W_{Q0} W_{K0}^\top \rVert_F^2} +
              \frac{\lVert W_V W_O - W_{V0} W_{O0} \rVert_F^2}{\lVert W_{V0} W_{O0} \rVert_F^2}
              \right)

    Dimensionless: 1 when a head falls silent. Biases count as the weights of an input that is
    always 1. ``circuits`` is "both", "qk" or "ov". In rotary models both squares of QK are means
    over the relative offsets 0, 1, 2, 4 ... within the context, because the pattern depends on the
    product at every offset.

    Invariant under every change of basis between W_Q and W_K, or W_V and W_O, that leaves the head
    as it is. The gradient reaches q, k, v and o of the guarded heads (under grouped-query attention
    the shared key and value), and nothing else: no other layer.

    Blind to what the heads read and to what becomes of their writes: a head that is the same may
    see other inputs, and be outvoted. The norms are not folded in, nor those on queries and keys:
    what training does to their scales is not seen. All directions of the residual stream count
    alike, used or not.

    Raises:
        ValueError: If ``circuits`` is none of these.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, for the two circuits; the
        distance is that of L2-SP (Li et al. 2018, arXiv:1802.01483), taken of the products.
    """

    def __init__(self, circuits: str = "both") -> None:
        super().__init__()
        check_choice("circuits", circuits, ("both", "qk", "ov"))
        self.circuits = circuits

    @property
    def needs(self) -> frozenset[Need]:
        """Weights."""
        return frozenset({"weights"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The dimensionless drift."""
        values = []
        if self.circuits != "ov":
            (kept_q, q), (kept_k, k) = (compared(now, reference, n) for n in ("W_Q", "W_K"))
            turns = None if reference.turns is None else reference.turns.to(q.device)
            values.append(product_drift(q, k.mT, kept_q, kept_k.mT, turns).mean())
        if self.circuits != "qk":
            (kept_v, v), (kept_o, o) = (compared(now, reference, n) for n in ("W_V", "W_O"))
            values.append(product_drift(v, o, kept_v, kept_o).mean())
        return torch.stack(values).mean()
