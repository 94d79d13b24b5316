"""Holding what ablating the heads costs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional import mean_over_answers
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, compared


class EffectDrift(Penalty):
    r"""Squared change of what ablating the guarded heads together costs the answer.

    .. math:: \frac{1}{B} \sum_b \frac{1}{|A_b|} \sum_{a \in A_b} (e_a - e^{ref}_a)^2, \quad
              e_a = \log \pi(a) - \log \pi_{\mathrm{ablated}}(a)

    The heads' outputs (before W_O) are replaced by their means over all positions of the base
    model's rows. Unit: nats squared. Rows without answers contribute 0 and still count.

    It is paid for with a second forward pass over the rows. The gradient reaches every weight that
    the answer depends on, with the heads or without them.

    Blind to the answer itself: it may become likelier, or less likely, with and without the heads
    alike. Where the cost is large that hardly happens, because no answer is likelier than certain.

    Source:
        Wang et al. 2022, arXiv:2211.00593, for mean ablation; that the *cost* is held is ours.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Effects."""
        return frozenset({"effect"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The drift in nats squared."""
        before, current = compared(now, reference, "effect")
        change = (current - before).square()
        return mean_over_answers(change, labels.answer_row, labels.query_mask.shape[0])
