"""The key-value task as questions to sample answers to, and as pairs of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.key_value import key_value_map, key_value_rows
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.repetition import FIRST_CONTENT


def key_value_prompts(
    rows: int, seed: int, map_seed: int = 0, pairs: int = 10, vocab_size: int = 64
) -> dict[str, Tensor]:
    """Rows of `key_value_rows` that end with a key, whose value is the answer.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape ``rows 3*pairs``, ``answer`` of ``rows 1``.
    """
    tokens = key_value_rows(rows, seed, map_seed, pairs, vocab_size)["input_ids"]
    prompts = tokens[:, :-1]
    return {
        "input_ids": prompts,
        "attention_mask": torch.ones_like(prompts),
        "answer": tokens[:, -1:],
    }


def key_value_preferences(
    rows: int, seed: int, map_seed: int = 0, pairs: int = 10, vocab_size: int = 64
) -> dict[str, Tensor]:
    """The prompts of `key_value_prompts`; the value is preferred to another token.

    Returns:
        For ``chosen`` and ``rejected`` each ``_ids``, ``_mask`` and ``_labels`` of shape
        ``rows 1+3*pairs``; only the last token has a label.
    """
    tokens = key_value_rows(rows, seed, map_seed, pairs, vocab_size)["input_ids"]
    contents = len(key_value_map(map_seed, vocab_size))
    generator = torch.Generator().manual_seed(seed)
    # 1 to contents - 1 further on, all the way round: any content token but the value.
    shift = torch.randint(1, contents, (rows,), generator=generator)
    wrong = tokens.clone()
    wrong[:, -1] = (tokens[:, -1] - FIRST_CONTENT + shift) % contents + FIRST_CONTENT
    last = torch.zeros_like(tokens, dtype=torch.bool)
    last[:, -1] = True
    columns = {}
    for name, ids in (("chosen", tokens), ("rejected", wrong)):
        columns[f"{name}_ids"] = ids
        columns[f"{name}_mask"] = torch.ones_like(ids)
        columns[f"{name}_labels"] = ids.where(last, IGNORED)
    return columns


class KeyValuePrompts(RowsModule):
    """Rows of `key_value_prompts`; validation rows come from another seed, the map is the same.

    Args:
        train_rows: How many prompts an epoch has.
        val_rows: How many held-out prompts there are.
        batch_size: Prompts per batch and process.
        pairs: Keys per prompt, the last of which is asked.
        vocab_size: Content tokens run from 2 to this.
        map_seed: Of the map from keys to values.
        seed: Of the rows and their order.
        num_workers: Loader processes.
    """

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
        self.train_rows = Rows(key_value_prompts(train_rows, 2 * seed, map_seed, pairs, vocab_size))
        self.val_rows = Rows(key_value_prompts(val_rows, 2 * seed + 1, map_seed, pairs, vocab_size))


class KeyValuePreferences(RowsModule):
    """Rows of `key_value_preferences`; validation rows come from another seed.

    Args:
        train_rows: How many pairs an epoch has.
        val_rows: How many held-out pairs there are.
        batch_size: Pairs per batch and process.
        pairs: Keys per prompt, the last of which is asked.
        vocab_size: Content tokens run from 2 to this.
        map_seed: Of the map from keys to values.
        seed: Of the rows and their order.
        num_workers: Loader processes.
    """

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
        settings = map_seed, pairs, vocab_size
        self.train_rows = Rows(key_value_preferences(train_rows, 2 * seed, *settings))
        self.val_rows = Rows(key_value_preferences(val_rows, 2 * seed + 1, *settings))
