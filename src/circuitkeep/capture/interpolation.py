"""A model between two models."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def interpolate(base: PreTrainedModel, tuned: PreTrainedModel, alpha: float) -> PreTrainedModel:
    r"""Give `tuned` the weights :math:`(1 - \alpha)\,\theta_{base} + \alpha\,\theta_{tuned}`.

    Args:
        base: Left as it is.
        tuned: Changed in place, and returned; with ``alpha=1`` not by a bit.
        alpha: 0 is the base, 1 the tuned model.

    Raises:
        ValueError: If `alpha` is not from 0 to 1, or the models are not of one architecture.

    Source:
        Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (the base) to 1 (the tuned model), got {alpha}")
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    sizes, others = ({name: p.shape for name, p in part.items()} for part in (before, after))
    differing = sorted(n for n in before.keys() | after.keys() if sizes.get(n) != others.get(n))
    if type(base) is not type(tuned) or differing:
        raise ValueError(
            f"{type(base).__name__} and {type(tuned).__name__} are not one architecture"
            + (f": {differing[0]} differs" if differing else "")
            + "; only a model and what was trained from it can be interpolated"
        )
    for name, parameter in after.items():
        parameter.copy_(torch.lerp(before[name].to(parameter), parameter, alpha))
    return tuned
