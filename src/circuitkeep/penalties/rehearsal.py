"""Going on with training on the probe's prompts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional import mean_over_answers
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty


class Rehearsal(Penalty):
    r"""Cross-entropy of the probe's answers.

    .. math:: \frac{1}{B} \sum_b \frac{1}{|A_b|} \sum_{a \in A_b} -\log \pi(a)

    Unit: nats. Rows without answers contribute 0 and still count. Unlike every other penalty it is
    not 0 at the reference, of which it reads nothing: it is the loss of the base model's answers
    there, and may pull the model beyond what the base could do.

    The gradient reaches every weight that the answer depends on.

    Blind to how the answer comes about, to all other tokens' probabilities, and to every position
    that is not asked for an answer.

    Source:
        Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 7.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """The answers' log-probabilities, and that the pass goes as far as the logits."""
        return frozenset({"log_probs", "answers"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The cross-entropy in nats.

        Raises:
            ValueError: If `now` holds no log-probabilities of answers.
        """
        if now.answers is None:
            raise ValueError(
                "the current activations hold no 'answers'; capture what the penalty's `needs` "
                "lists"
            )
        return mean_over_answers(-now.answers, labels.answer_row, labels.query_mask.shape[0])
