"""Text in lines of one width, and the small model that learns where they break."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitkeep.capture.models import (
    build_line_breaks,
    build_word_tokenizer,
    load_model_and_tokenizer,
)
from circuitkeep.probes.line_text import WORDS
from circuitkeep.probes.lines import Lines, draw_lines
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.trained_once import Recipe, train_once, train_small

BOS, UNKNOWN, NEWLINE = "<s>", "<unk>", "\n"
"""The first word of a row, what other words become, and the line break."""

LENGTH = 192
"""Tokens per row: some 20 lines of the widest, so that their width can be known."""


def line_break_tokenizer() -> Any:
    """One token per word, with the blank before it, and one for a line break."""
    return build_word_tokenizer((BOS, UNKNOWN, NEWLINE, *WORDS), BOS, UNKNOWN)


def line_break_rows(lines: Lines) -> dict[str, Tensor]:
    """The columns of `Rows`; line breaks are the answers."""
    labels = lines.tokens.where(lines.mask, -100)
    answers = torch.zeros_like(lines.mask)
    answers[:, 1:] = lines.breaks[:, :-1]
    return {
        "input_ids": lines.tokens.where(lines.mask, 0),
        "attention_mask": lines.mask.long(),
        "labels": labels,
        "answers": answers,
    }


class LineBreakText(RowsModule):
    """Text in lines: training rows of some widths, validation rows of other text in other widths.

    ``val/accuracy`` is the share of true line breaks at which one is the likeliest next token.

    Args:
        train_rows: How many rows an epoch has.
        val_rows: How many held-out rows there are.
        batch_size: Rows per batch.
        length: Tokens per row, BOS included.
        tokenizer: A fast one of Hugging Face; None for `line_break_tokenizer`.
        text: A text file; None for random walks over `WORDS`.
        usage: Seed of which word usually follows which, in these walks.
        widths: Narrowest and widest lines, in characters; far more than a row's for text
            without line breaks.
        every: Every so many widths one is held out.
        seed: Of the rows and their order.
        num_workers: Loader processes.

    Raises:
        ValueError: See `circuitkeep.probes.lines.draw_lines`.
        OSError: If the file cannot be read.
    """

    def __init__(
        self,
        train_rows: int = 8000,
        val_rows: int = 128,
        batch_size: int = 16,
        length: int = LENGTH,
        tokenizer: Any = None,
        text: str | None = None,
        usage: int = 0,
        widths: Sequence[int] = (20, 80),
        every: int = 5,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        tokenizer = line_break_tokenizer() if tokenizer is None else tokenizer

        def rows(number: int, held_out: bool) -> Rows:
            lines = draw_lines(
                tokenizer,
                number,
                length,
                "held_out" if held_out else "train",
                2 * seed + held_out,
                bos=tokenizer.bos_token_id,
                widths=widths,
                every=every,
                file=text,
                usage=usage,
            )
            return Rows(line_break_rows(lines))

        self.train_rows = rows(train_rows, held_out=False)
        self.val_rows = rows(val_rows, held_out=True)


STANDARD = Recipe(steps=2000, batch_size=16, lr=3e-3, weight_decay=0.05)
"""What `train_line_breaks` trains by unless told otherwise."""


def train_line_breaks(
    cache_dir: str | os.PathLike[str],
    seed: int = 0,
    recipe: Recipe | None = None,
    progress_bar: bool = True,
) -> Path:
    """The folder of a model that breaks lines, in Hugging Face format, trained now or earlier.

    Training takes about 9 minutes on one core and repeats exactly on the same machine. The global
    random state is left as it was found.

    Args:
        cache_dir: Holds one folder per seed and recipe.
        seed: Of the weights and of the data.
        recipe: None for `STANDARD`. The learning rate falls to 0 along a half cosine.
        progress_bar: Show one while training.

    Raises:
        OSError: If the folder cannot be written; nothing is left in its place then.
    """
    recipe = recipe or STANDARD
    tokenizer = line_break_tokenizer()

    def train() -> Any:
        data = LineBreakText(recipe.steps * recipe.batch_size, 1, recipe.batch_size, seed=seed)
        model = build_line_breaks(len(tokenizer), LENGTH, seed)
        return train_small(model, data, recipe, "cosine", progress_bar)

    return train_once(cache_dir, "line-breaks", seed, recipe, train, tokenizer)


def load_line_breaks(
    cache_dir: str | os.PathLike[str], seed: int = 0, progress_bar: bool = True
) -> tuple[Any, Any]:
    """The model that breaks lines, trained first if need be, and its tokenizer.

    Args:
        cache_dir: See `train_line_breaks`.
        seed: See `train_line_breaks`.
        progress_bar: See `train_line_breaks`.
    """
    return load_model_and_tokenizer(train_line_breaks(cache_dir, seed, None, progress_bar))
