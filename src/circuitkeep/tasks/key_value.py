"""A task with no inherent conflict with induction: recall a fixed map from keys to values."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.repetition import BOS, FIRST_CONTENT

QUERY = 1
"""The token that announces a key."""


def key_value_map(map_seed: int, vocab_size: int = 64) -> Int[Tensor, " content"]:
    """The value of each content token, in the order of the tokens 2, 3, ..."""
    contents = vocab_size - FIRST_CONTENT
    generator = torch.Generator().manual_seed(map_seed)
    return torch.randint(contents, (contents,), generator=generator) + FIRST_CONTENT


def key_value_rows(
    rows: int, seed: int, map_seed: int = 0, pairs: int = 10, vocab_size: int = 64
) -> dict[str, Tensor]:
    """BOS, then ``QUERY key value`` `pairs` times; only the values have labels.

    The keys of a row are distinct: a value can be recalled, but not copied from the context.

    Returns:
        The columns of `Rows`, each of shape ``rows 1+3*pairs``.

    Raises:
        ValueError: If there are fewer content tokens than pairs.
    """
    values = key_value_map(map_seed, vocab_size)
    if len(values) < pairs:
        raise ValueError(
            f"{pairs} distinct keys need a vocabulary of {pairs + 2}, not {vocab_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(rows, len(values), generator=generator).argsort(1)[:, :pairs]
    triples = torch.stack([torch.full_like(keys, QUERY), keys + FIRST_CONTENT, values[keys]], dim=2)
    tokens = torch.cat([torch.full((rows, 1), BOS), triples.flatten(1)], dim=1)
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[:, 3::3] = True
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens.where(answers, IGNORED),
        "answers": answers,
    }


class KeyValueMap(RowsModule):
    """Rows of `key_value_rows`; validation rows come from another seed, the map is the same.

    Args:
        train_rows: How many rows an epoch has.
        val_rows: How many held-out rows there are.
        batch_size: Rows per batch.
        pairs: Questions per row; a row has ``1 + 3 * pairs`` tokens.
        vocab_size: Content tokens run from 2 to this.
        map_seed: Of the map from keys to values.
        seed: Of the rows and their order.
        num_workers: Loader processes.
    """

    make = staticmethod(key_value_rows)
    """Makes the columns; subclasses make others of the same map."""

    def __init__(
        self,
        train_rows: int = 9_600,
        val_rows: int = 256,
        batch_size: int = 32,
        pairs: int = 10,
        vocab_size: int = 64,
        map_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        # Even seeds for training and odd ones for validation never meet, whatever the user picks.
        self.train_rows = Rows(self.make(train_rows, 2 * seed, map_seed, pairs, vocab_size))
        self.val_rows = Rows(self.make(val_rows, 2 * seed + 1, map_seed, pairs, vocab_size))
