"""Pairs of a chosen and a rejected text as training data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.loading import Rows
from circuitkeep.tasks.records import (
    TextRecords,
    continuation_tokens,
    prompt_tokens,
    read_records,
    stack,
    tell_left_out,
)

FIELDS = ("prompt", "chosen", "rejected")


class TextPreferences(TextRecords):
    """A ``.jsonl`` of objects with ``prompt``, ``chosen`` and ``rejected``.

    Each text follows its prompt, begins with BOS and ends with EOS where the tokenizer has them,
    and is cut at `max_length`, at its end, as TRL does. Pairs that are equal up to there have
    nothing to teach and are left out, with a warning that counts them.

    Args:
        train: The file.
        validation: Such a file, or the fraction of `train` to hold out at random, or None.
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens of prompt and text together.
        batch_size: Pairs per batch and process.
        seed: Of the order of the rows and of those held out.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        train: str | os.PathLike[str],
        validation: str | os.PathLike[str] | float | None = 0.1,
        tokenizer: Any = None,
        max_length: int = 512,
        batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(train, validation, tokenizer, batch_size, seed, num_workers)
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 to predict a token, got {max_length}")
        self.max_length = max_length

    def read(self, path: Path) -> list[dict[str, str]]:
        """See `TextRecords`."""
        if path.suffix != ".jsonl":
            raise ValueError(f"{path}: preferences are read from a .jsonl file")
        return read_records(path, FIELDS)

    def rows(self, records: Sequence[dict[str, str]]) -> Rows:
        """See `TextRecords`."""
        end = self.tokenizer.eos_token_id
        ends = [] if end is None else [end]
        prompts, pairs = [], []
        for record in records:
            prompt = prompt_tokens(self.tokenizer, record["prompt"])
            room = max(0, self.max_length - len(prompt))
            chosen, rejected = (
                [*continuation_tokens(self.tokenizer, record["prompt"], record[name]), *ends][:room]
                for name in ("chosen", "rejected")
            )
            if chosen != rejected:
                prompts.append(prompt)
                pairs.append((chosen, rejected))
        what = f"have the same chosen and rejected text within max_length={self.max_length} tokens"
        tell_left_out(len(records) - len(pairs), len(records), what)
        columns = {}
        for side, name in enumerate(("chosen", "rejected")):
            whole = [prompt + pair[side] for prompt, pair in zip(prompts, pairs, strict=True)]
            labels = [
                [IGNORED] * len(prompt) + pair[side]
                for prompt, pair in zip(prompts, pairs, strict=True)
            ]
            columns[f"{name}_ids"], mask = stack(whole, 0)
            columns[f"{name}_mask"] = mask.long()
            columns[f"{name}_labels"] = stack(labels, IGNORED)[0]
        return Rows(columns)
