"""Holding what heads say to the answer directly."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional import mean_over_answers
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty


class AttributionDrift(Penalty):
    r"""Squared change of each head's direct attribution to the answer's logit.

    .. math:: \frac{1}{BH} \sum_{bh} \frac{1}{|A_b|} \sum_{a \in A_b}
              \big(u_a \cdot (r_{ah} - r^{ref}_{ah})\big)^2

    with :math:`r_{ah}` what head ``h`` writes into the residual stream at answer ``a``, and
    :math:`u_a` the answer's column of the unembedding, less the distractor's (the mean of all
    columns where there is none), with the final norm's scale and centring folded in, over what that
    norm divided by. Unit: logits squared. Rows without answers contribute 0 and still count.

    The direction :math:`u_a` is the base model's throughout: unembedding, final norm and its
    division are frozen. So training gathers nothing of the size of the vocabulary.

    Invariant under all that a head writes across that direction. The gradient reaches q, k, v and o
    of the guarded heads, and all they read.

    Blind to the unembedding and the final norm, to what a head does through later layers, and to
    other parts of the model that outvote it.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework; Wang et al. 2022,
        arXiv:2211.00593, section 3, for the attribution with the norm frozen.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What heads write at the answers."""
        return frozenset({"attribution"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The drift in logits squared."""
        written, direction, before = now.written, reference.direction, reference.attribution
        if written is None or direction is None or before is None:
            side = "current" if written is None else "reference"
            raise ValueError(
                f"the {side} activations hold no 'attribution'; capture what the penalty's `needs` "
                "lists"
            )
        if len(written) != len(direction):
            raise ValueError(
                f"{len(written)} answers now and {len(direction)} at the reference; both must come "
                "from the same probe rows"
            )
        change = attributed(written, direction.to(written.device)) - before.to(written.device)
        return mean_over_answers(
            change.square().mean(1), labels.answer_row, labels.query_mask.shape[0]
        )


def attributed(
    written: Float[Tensor, "answer head d_model"], direction: Float[Tensor, "answer d_model"]
) -> Float[Tensor, "answer head"]:
    """What heads write along `direction`, in logits, fp32 at least."""
    dtype = torch.promote_types(torch.promote_types(written.dtype, direction.dtype), torch.float32)
    return (written.to(dtype) * direction.detach().to(dtype)[:, None]).sum(-1)
