"""Holding how much heads attend to their targets, and nothing more."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from circuitkeep.functional import mean_over_queries, target_attention
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, compared


class HeadScoreFloor(Penalty):
    r"""Squared hinge on head scores that fall below the reference's by more than a margin.

    .. math:: \frac{1}{BH} \sum_{bh} \max(0, s^{ref}_{bh} - m - s_{bh})^2

    with :math:`s_{bh}` the mean attention that head ``h`` pays to its target keys in row ``b``.
    Unit: probability squared, in [0, 1]. Heads without a target in a row contribute 0.

    Invariant under every change of the value path, and of the pattern that keeps the attention on
    target. The gradient reaches q and k of the guarded heads, and all they read, and is 0 above
    the floor.

    Blind above the floor, to attention moving between target keys or between other keys, and to
    the value path. A fully saturated softmax gives no gradient to climb back by.

    Raises:
        ValueError: If ``margin`` is not in [0, 1).

    Source:
        Olsson et al. 2022, arXiv:2209.11895, for the score ("prefix matching score").
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        if not 0 <= margin < 1:
            raise ValueError(f"margin={margin} is a drop in attention: choose it in [0, 1)")
        self.margin = margin

    @property
    def needs(self) -> frozenset[Need]:
        """Patterns."""
        return frozenset({"pattern"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The squared shortfall."""
        kept, current = (
            mean_over_queries(target_attention(pattern, labels.target), labels.target_mask)
            for pattern in compared(now, reference, "pattern")
        )
        shortfall = nn.functional.relu(kept - self.margin - current).square()
        return shortfall.sum() / max(shortfall.numel(), 1)
