"""Rows of tokens that a model drew itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.sampling import sample_tokens, special_tokens

_AT_ONCE = 256
"""Rows that are drawn at a time."""


class TokenRows(NamedTuple):
    """Right-padded tokens, and which of them are real."""

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]


def own_rows(
    backend: Backend,
    tokenizer: Any,
    rows: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenRows:
    """Rows that the model draws at temperature 1, each from BOS to its first BOS or EOS.

    The same seed gives the same rows.

    Raises:
        ValueError: If the model has no BOS token, or `length` exceeds its context.
    """
    bos, special = special_tokens(backend.model, tokenizer)
    drawn = []
    for first in range(0, rows, _AT_ONCE):
        number = min(_AT_ONCE, rows - first)
        # Spread, lest the rows of one seed be among those of another.
        own_seed = seed * 1_000_003 + first
        drawn.append(sample_tokens(backend, number, length, own_seed, bos).cpu())
        progress(first + number, rows)
    tokens = torch.cat(drawn)
    return TokenRows(tokens, until_end(tokens, sorted(special)))


def until_end(tokens: Int[Tensor, "row pos"], ends: list[int]) -> Bool[Tensor, "row pos"]:
    """Where a row has not ended: up to and with the first of `ends` after its first token."""
    ended = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype))
    ended[:, 0] = False
    before = ended.cumsum(1) - ended.long()
    return before == 0
