"""Labels that follow from the tokens alone: where a head of a role should attend.

Every function takes a `mask` that is True where a token counts (padding, BOS and special tokens
do not: `circuitkeep.probes.rows.content_mask`) and returns a causal target; queries and keys
outside the mask never have one.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

TEXT_LABELS = ("previous-token", "duplicate-token", "induction")
"""Roles that any token sequence labels; see `text_targets`."""


def previous_token_target(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos pos"]:
    """The key just before each query."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    previous = positions[None, :] == positions[:, None] - 1
    return previous & _both(mask)


def duplicate_token_target(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos pos"]:
    """Earlier keys that hold the query's token.

    Source:
        Wang et al. 2022, arXiv:2211.00593, "duplicate token heads".
    """
    same = tokens[:, :, None] == tokens[:, None, :]
    return (same & _both(mask)).tril(-1)


def induction_target(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], offset: int = 1
) -> Bool[Tensor, "batch pos pos"]:
    """Keys `offset` after an earlier occurrence of the query's token.

    Models are known whose heads attend elsewhere than right after the repeat; `offset` follows
    them. Offset 0 is `duplicate_token_target`.

    Raises:
        ValueError: If `offset` is negative.

    Source:
        Olsson et al. 2022, arXiv:2209.11895, "prefix matching" (offset 1).
    """
    if offset < 0:
        raise ValueError(f"an induction target's offset must not be negative, got {offset}")
    earlier = duplicate_token_target(tokens, mask)
    shifted = torch.zeros_like(earlier)
    length = tokens.shape[1]
    if offset < length:
        shifted[:, :, offset:] = earlier[:, :, : length - offset]
    return (shifted & mask[:, None, :]).tril()


def copy_target(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos pos"]:
    """Keys up to the query that hold the token which comes next after the query.

    This is what a copying or name-moving head attends to, known only with hindsight; the query
    itself may be such a key.
    """
    target = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    same = tokens[:, 1:, None] == tokens[:, None, :]
    target[:, :-1] = same & mask[:, 1:, None] & _both(mask)[:, :-1]
    return target.tril()


def text_targets(
    tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], offset: int = 1
) -> dict[str, Bool[Tensor, "batch pos pos"]]:
    """The targets of `TEXT_LABELS`."""
    return {
        "previous-token": previous_token_target(mask),
        "duplicate-token": duplicate_token_target(tokens, mask),
        "induction": induction_target(tokens, mask, offset),
    }


def _both(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos pos"]:
    return mask[:, :, None] & mask[:, None, :]
