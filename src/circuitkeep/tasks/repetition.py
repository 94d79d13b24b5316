"""Repeated segments of random tokens: what the embedded model learns induction from."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitkeep.tasks.loading import Rows, RowsModule

BOS = 0
FIRST_CONTENT = 2
"""Token 1 is the query marker of `circuitkeep.tasks.key_value`, which no segment holds."""


def repeated_segments(
    rows: int, seed: int, length: int = 32, vocab_size: int = 64
) -> dict[str, Tensor]:
    """BOS, 0-4 random tokens, then a segment of 4-15 *unique* tokens, tiled to the end.

    Every token has a label; ``answers`` marks those that follow from the context: from the
    second token of the second copy on (which token comes back first is not known before).

    Returns:
        The columns of `Rows`, each of shape ``rows length``.

    Raises:
        ValueError: If the vocabulary has fewer than 15 content tokens.
    """
    contents = vocab_size - FIRST_CONTENT
    if contents < 15:
        raise ValueError(
            f"a segment of 15 unique tokens needs a vocabulary of 17, not {vocab_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randint(contents, (rows, 4), generator=generator) + FIRST_CONTENT
    segment = torch.rand(rows, contents, generator=generator).argsort(1)[:, :15] + FIRST_CONTENT
    prefix_length = torch.randint(5, (rows, 1), generator=generator)
    segment_length = torch.randint(4, 16, (rows, 1), generator=generator)
    since_bos = torch.arange(length).expand(rows, -1) - 1
    into_tiles = since_bos - prefix_length
    tokens = torch.where(
        into_tiles < 0,
        prefix.gather(1, since_bos.clamp(0, 3)),
        segment.gather(1, into_tiles.clamp(min=0) % segment_length),
    )
    tokens[:, 0] = BOS
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens.clone(),
        "answers": into_tiles > segment_length,
    }


class RepeatedSegments(RowsModule):
    """Rows of `repeated_segments`; validation rows come from another seed.

    Args:
        train_rows: How many rows an epoch has.
        val_rows: How many held-out rows there are.
        batch_size: Rows per batch.
        length: Tokens per row.
        vocab_size: Content tokens run from 2 to this.
        seed: Of the rows and their order.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        train_rows: int = 22_400,
        val_rows: int = 256,
        batch_size: int = 32,
        length: int = 32,
        vocab_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        # Even seeds for training and odd ones for validation never meet, whatever the user picks.
        self.train_rows = Rows(repeated_segments(train_rows, 2 * seed, length, vocab_size))
        self.val_rows = Rows(repeated_segments(val_rows, 2 * seed + 1, length, vocab_size))
