"""Preferences without anybody's judgement: text against the model's own continuation of it."""

from __future__ import annotations

import os
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuitkeep.capture.models import load_model
from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.documents import Source
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.rollouts import Sampling, complete
from circuitkeep.tasks.text import TextData


class SelfPlay(RowsModule):
    """Pairs for DPO: how a text goes on (chosen), and how the model would go on (rejected).

    The text is cut into rows of a prompt and its continuation, of which some are drawn. The model
    completes the prompts once, before training, at temperature 1.

    Args:
        train: Documents; see `circuitkeep.tasks.documents.read_documents`.
        model: Directory or hub name of the model to be trained, as it is before.
        validation: Held-out documents, or the fraction of `train` to hold out; see `TextData`.
        tokenizer: A Hugging Face tokenizer.
        prompt_tokens: Of each row, after BOS where the tokenizer has one.
        completion_tokens: Of each chosen text, and at most of each rejected one.
        pairs: Of training; fewer if the text has fewer.
        val_pairs: Held out.
        batch_size: Pairs per batch and process.
        seed: Of the completions, of the rows that are drawn, and of their order.
        num_workers: Loader processes.

    Raises:
        ValueError: On construction for numbers that are not positive; in `setup` as `TextData`
            and `load_model`, and for a text that is shorter than one row.

    Source:
        Chen et al. 2024, arXiv:2401.01335 (SPIN), of which this is the first iteration.
    """

    def __init__(
        self,
        train: Source,
        model: str | os.PathLike[str],
        validation: Source | float | None = 0.1,
        tokenizer: Any = None,
        prompt_tokens: int = 24,
        completion_tokens: int = 24,
        pairs: int = 2400,
        val_pairs: int = 256,
        batch_size: int = 16,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        for name, value in {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "pairs": pairs,
            "val_pairs": val_pairs,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.train, self.validation = train, validation
        self.model, self.tokenizer = model, tokenizer
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens
        self.pairs, self.val_pairs = pairs, val_pairs
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenize and complete, once; see the class."""
        if self._ready:
            return
        bos = getattr(self.tokenizer, "bos_token_id", None)
        width = (bos is not None) + self.prompt_tokens + self.completion_tokens
        text = TextData(
            self.train, self.validation, self.tokenizer, block_size=width, seed=self.seed
        )
        text.setup()
        model = load_model(self.model).eval()
        self.train_rows = self._pairs(text.train_rows, width, self.pairs, model, 2 * self.seed)
        self.val_rows = None
        if text.val_rows is not None:
            self.val_rows = self._pairs(
                text.val_rows, width, self.val_pairs, model, 2 * self.seed + 1
            )
        self._ready = True

    def _pairs(self, rows: Rows, width: int, pairs: int, model: Any, seed: int) -> Rows:
        tokens = rows.columns["input_ids"]
        asked = width - self.completion_tokens
        # The last row may be shorter than the others.
        whole = tokens[rows.columns["attention_mask"].sum(1) == width]
        if len(whole) == 0:
            raise ValueError(
                f"no text has prompt_tokens={self.prompt_tokens} and completion_tokens="
                f"{self.completion_tokens}; lower them, or give more text"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            chosen = whole[torch.randperm(len(whole))[:pairs]]
            rejected, kept = self._completed(model, chosen[:, :asked])
        columns = {}
        for name, ids, mask in (
            ("chosen", chosen, torch.ones_like(chosen)),
            ("rejected", rejected, kept),
        ):
            labels = ids.where(mask.bool(), IGNORED)
            labels[:, :asked] = IGNORED
            columns |= {f"{name}_ids": ids, f"{name}_mask": mask, f"{name}_labels": labels}
        return Rows(columns)

    def _completed(
        self, model: Any, prompts: Int[Tensor, "row prompt"]
    ) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """Prompts with what the model makes of them, and 1 where they are real."""
        sampling = Sampling(max_new_tokens=self.completion_tokens)
        found, masks = [], []
        for part in prompts.split(256):
            ids, kept = complete(model, part, torch.ones_like(part), sampling)
            mask = torch.cat([torch.ones_like(part), kept.long()], 1)
            # Shorter only where all ended early.
            fill = (0, prompts.shape[1] + self.completion_tokens - ids.shape[1])
            found.append(torch.nn.functional.pad(ids, fill))
            masks.append(torch.nn.functional.pad(mask, fill))
        return torch.cat(found), torch.cat(masks)
