"""How much attention heads pay to the keys a probe labels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def target_attention(
    pattern: Float[Tensor, "batch head query key"],
    target: Bool[Tensor, "batch #head query key"],
) -> Float[Tensor, "batch head query"]:
    r"""Attention that each query pays to its target keys together.

    .. math:: a_{bhq} = \sum_k D_{bhqk} A_{bhqk}

    Args:
        target: Per head, or one for all heads.

    Returns:
        A probability in [0, 1], fp32 at least; 0 at queries without a target key.
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    # Not an einsum: autocast would run that in half precision.
    return pattern.to(wide).masked_fill(~target, 0).sum(-1)


def head_score(
    pattern: Float[Tensor, "batch head query key"],
    target: Bool[Tensor, "batch query key"],
) -> Float[Tensor, " head"]:
    r"""Mean attention each head pays to its target keys.

    .. math:: s_h = \frac{1}{|Q|} \sum_{(b,q) \in Q} \sum_k D_{bqk} A_{bhqk}

    ``Q`` holds the queries with at least one target key; positions where no match is possible do
    not dilute the score.

    Returns:
        A probability in [0, 1] per head, fp32 at least; differentiable in ``pattern``.

    Raises:
        ValueError: If no query has a target key.

    Source:
        Olsson et al. 2022, arXiv:2209.11895, "prefix matching score".
    """
    n_queries = target.any(-1).sum()
    if n_queries == 0:
        raise ValueError(
            f"no query of the {target.shape[0]} prompts has a target key, so there is nothing to "
            "score; give the probe prompts in which the pattern it labels occurs"
        )
    return target_attention(pattern, target[:, None]).sum((0, 2)) / n_queries


def head_score_per_row(
    pattern: Float[Tensor, "batch head query key"],
    target: Bool[Tensor, "batch query key"],
) -> Float[Tensor, "batch head"]:
    r"""`head_score` of each prompt by itself, for intervals over prompts.

    .. math:: s_{bh} = \frac{1}{|Q_b|} \sum_{q \in Q_b} \sum_k D_{bqk} A_{bhqk}

    Returns:
        A probability in [0, 1] per row and head, fp32 at least; NaN in rows where no query has a
        target key.

    Source:
        Olsson et al. 2022, arXiv:2209.11895, "prefix matching score".
    """
    n_queries = target.any(-1).sum(-1)[:, None]
    scores = target_attention(pattern, target[:, None]).sum(-1) / n_queries.clamp(min=1)
    return scores.masked_fill(n_queries == 0, torch.nan)
