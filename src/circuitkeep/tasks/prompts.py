"""Prompts as text, for tasks that sample the completions themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitkeep.tasks.loading import Rows
from circuitkeep.tasks.records import (
    TextRecords,
    continuation_tokens,
    prompt_tokens,
    read_records,
    stack,
    tell_left_out,
)
from circuitkeep.tasks.rewards import NO_TOKEN


class TextPrompts(TextRecords):
    """Prompts of a file, each beginning with BOS where the tokenizer has one.

    Args:
        train: A ``.jsonl`` of objects with ``prompt`` and, for `AnswerMatch`, ``answer``; or a
            ``.txt`` with a prompt per line, whose blanks at either end count.
        validation: Such a file, or the fraction of `train` to hold out at random, or None.
        tokenizer: A Hugging Face tokenizer.
        max_prompt_tokens: Longer prompts are left out with a warning that counts them, as TRL
            advises; cut, they would ask something else. None for no limit: what does not fit the
            model's context is refused then.
        batch_size: Prompts per batch and process.
        seed: Of the order of the rows and of those held out.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        train: str | os.PathLike[str],
        validation: str | os.PathLike[str] | float | None = 0.1,
        tokenizer: Any = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(train, validation, tokenizer, batch_size, seed, num_workers)
        self.max_prompt_tokens = max_prompt_tokens

    def read(self, path: Path) -> list[dict[str, str]]:
        """See `TextRecords`."""
        if path.suffix == ".jsonl":
            return read_records(path, ["prompt"], ["answer"])
        if path.suffix != ".txt":
            raise ValueError(f"{path}: prompts are read from .jsonl or .txt files")
        if not path.is_file():
            raise ValueError(f"there is no data file {path} (looked for {path.absolute()})")
        lines = path.read_text(encoding="utf-8").splitlines()
        prompts = [{"prompt": line} for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"{path} is empty")
        return prompts

    def rows(self, records: Sequence[dict[str, str]]) -> Rows:
        """See `TextRecords`."""
        prompts = [prompt_tokens(self.tokenizer, record["prompt"]) for record in records]
        limit = self.max_prompt_tokens or max(map(len, prompts))
        kept = [i for i, prompt in enumerate(prompts) if len(prompt) <= limit]
        what = f"have a prompt of more than max_prompt_tokens={limit} tokens"
        tell_left_out(len(prompts) - len(kept), len(prompts), what)
        tokens, mask = stack([prompts[i] for i in kept], 0)
        columns = {"input_ids": tokens, "attention_mask": mask.long()}
        asked = [records[i] for i in kept]
        if all("answer" in record for record in asked):
            answers = [
                continuation_tokens(self.tokenizer, record["prompt"], record["answer"])
                for record in asked
            ]
            columns["answer"] = stack(answers, NO_TOKEN)[0]
        return Rows(columns)
