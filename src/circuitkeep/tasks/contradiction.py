"""A task that conflicts with induction: what repeats is partly followed by another token."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.repetition import FIRST_CONTENT, repeated_segments


def contradicting_segments(
    rows: int, seed: int, length: int = 32, vocab_size: int = 64
) -> dict[str, Tensor]:
    """Rows of `repeated_segments`, whose answers alone have labels, some of them others.

    The n-th of N content tokens is replaced, as a label, by the next one (the last by the first)
    with a probability of (n - 1) / (N - 1): the first never and the last always. The inputs stay.
    So about half of all answers flip, and whoever keeps any of these has a cost.

    Returns:
        The columns of `Rows`, each of shape ``rows length``.

    Raises:
        ValueError: If the vocabulary has fewer than 15 content tokens.
    """
    columns = repeated_segments(rows, seed, length, vocab_size)
    tokens, contents = columns["input_ids"], vocab_size - FIRST_CONTENT
    place = tokens - FIRST_CONTENT
    draw = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    other = draw < place / (contents - 1)
    label = tokens.where(~other, (place + 1) % contents + FIRST_CONTENT)
    columns["labels"] = label.where(columns["answers"], IGNORED)
    return columns


class Contradiction(RowsModule):
    """Rows of `contradicting_segments`; validation rows come from another seed.

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
        train_rows: int = 9_600,
        val_rows: int = 256,
        batch_size: int = 32,
        length: int = 32,
        vocab_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        # Even seeds for training and odd ones for validation never meet, whatever the user picks.
        train, val = 2 * seed, 2 * seed + 1
        self.train_rows = Rows(contradicting_segments(train_rows, train, length, vocab_size))
        self.val_rows = Rows(contradicting_segments(val_rows, val, length, vocab_size))
