"""The key-value task as questions to sample answers to, and as pairs of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.key_value import KeyValueMap, key_value_map, key_value_rows
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


class KeyValuePrompts(KeyValueMap):
    """Rows of `key_value_prompts`, ``pairs`` keys in each; the rest is as in `KeyValueMap`."""

    make = staticmethod(key_value_prompts)


class KeyValuePreferences(KeyValueMap):
    """Rows of `key_value_preferences`, ``pairs`` keys in each; the rest is as in `KeyValueMap`."""

    make = staticmethod(key_value_preferences)
