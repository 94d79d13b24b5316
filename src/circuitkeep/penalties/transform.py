"""Holding what heads do to space."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.transforms import (
    product_cosine,
    recurrences,
    spectrum_ranks,
    squared_norm,
)
from circuitkeep.functional.weights import in_float64, safe_sqrt
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared

_SILENT = 1e-12


class OVTransformDrift(Penalty):
    r"""How the heads' OV maps have changed as transforms of space, part by part; no pass is run.

    .. math:: \frac{1}{H} \sum_h \left( w_d D_h + w_s \log^2
              \frac{\lVert M_h \rVert_F}{\lVert M_{h0} \rVert_F} + w_t T_h \right), \quad
              M = W_V W_O, \quad v = b_V W_O

    ``kind`` says what counts as the same direction and translation:

    - "strict": :math:`D = 1 - \cos(M, M_0)` of the maps as vectors, from 0 to 2, and
      :math:`T = \lVert v - v_0 \rVert^2 / (\lVert M_0 \rVert_F^2 + \lVert v_0 \rVert^2)`.
    - "turned": what stays if the whole stream is rotated. D is the mean squared change of the
      logarithms of the spectrum's effective ranks, plus that of the shares in which the map sends
      directions to themselves; T that of the translation's length in the same unit.

    All dimensionless. `HeadWeightDrift` puts direction, size and translation into one number: take
    this one to hold some of them and leave the others free, such as the direction of heads that
    may grow (``scale=0``), or to let the whole stream turn.

    Args:
        kind: "strict" or "turned".
        direction: :math:`w_d`.
        scale: :math:`w_s`.
        translation: :math:`w_t`.

    Invariant under every change of basis between W_V and W_O, "turned" also under a rotation of the
    residual stream. The gradient reaches v and o of the guarded heads (under grouped-query
    attention the shared value), and nothing else.

    Blind to QK, to what the heads read, to what becomes of their writes, and to the norms, which
    are not folded in. "turned" is blind to more than rotations, because it holds eight numbers of a
    head. A head of less than a millionth of its size counts as one of a millionth, with no gradient
    to grow by.

    Raises:
        ValueError: If ``kind`` is neither, or a weight is negative, not finite, or all are 0.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, for the OV circuit; Gurnee et
        al. 2025, arXiv:2601.04480, for heads as transforms of manifolds.
    """

    def __init__(
        self,
        kind: str = "strict",
        direction: float = 1.0,
        scale: float = 1.0,
        translation: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("strict", "turned"))
        self.kind = kind
        self.weights = (direction, scale, translation)
        for weight in self.weights:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"a weight of OVTransformDrift is {weight}: choose 0 or more")
        if not any(self.weights):
            raise ValueError("direction, scale and translation are all 0: nothing would be held")

    @property
    def needs(self) -> frozenset[Need]:
        """Weights."""
        return frozenset({"weights"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The dimensionless drift."""
        (kept_v, v), (kept_o, o) = (compared(now, reference, n) for n in ("W_V", "W_O"))
        wide, (kept_v, kept_o, v, o) = in_float64(kept_v, kept_o, v, o)
        (kept_a, kept_shift), (a, shift) = _parted(kept_v, kept_o), _parted(v, o)
        kept_size, size = squared_norm(kept_a, kept_o), squared_norm(a, o)
        unit = kept_size + kept_shift.square().sum(-1)
        if self.kind == "strict":
            direction = 1 - product_cosine(a, o, kept_a, kept_o)
            moved = (shift - kept_shift).square().sum(-1)
        else:
            ranks, shares = (
                (measure(a, o) - measure(kept_a, kept_o)).square().mean(-1)
                for measure in (spectrum_ranks, recurrences)
            )
            direction = ranks + shares
            length, kept_length = (safe_sqrt(x.square().sum(-1)) for x in (shift, kept_shift))
            moved = (length - kept_length).square()
        least = (_SILENT * kept_size).where(kept_size > 0, 1)
        ratio = torch.maximum(size, least) / torch.maximum(kept_size, least)
        parts = (
            direction * (kept_size > 0),  # a head that did nothing has none
            (0.5 * ratio.log()).square(),
            moved / unit.masked_fill(unit == 0, 1),
        )
        weighed = [w * part.mean() for w, part in zip(self.weights, parts, strict=True)]
        return torch.stack(weighed).sum().to(wide)


def _parted(
    value: Float[Tensor, "head d_model_1 d_value"], out: Float[Tensor, "head d_value d_model"]
) -> tuple[Float[Tensor, "head d_model d_value"], Float[Tensor, "head d_model"]]:
    """What reads the stream, and what is written whatever it reads."""
    return value[:, :-1], (value[:, -1:] @ out)[:, 0]
