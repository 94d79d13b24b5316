"""Indirect objects in every order, and the small attention-only model that learns them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuitkeep.capture.models import (
    build_attention_only,
    build_word_tokenizer,
    load_model_and_tokenizer,
)
from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.trained_once import Recipe, train_once, train_small

BOS, UNKNOWN, END = "<s>", "<unk>", "gave"
"""The first word of a row, what other words become, and the word that asks for the answer."""

FILLERS = ("then", "and", "with", "met", "saw", "while", "again", "later")
"""Words that tell nothing; they move the names about."""

NAMES = tuple(
    """
    Aaron Adam Alan Albert Alex Alice Amy Andrea Andrew Angela Ann Anthony Arthur Ashley Barbara
    Ben Betty Beth Brian Bruce Carl Carol Charles Chris Clara Craig Daniel David Dean Dennis Diana
    Donald Doris Dorothy Dylan Edward Elena Emily Emma Eric Ethan Eva Frank Fred Gary George Grace
    Greg Hannah Harold Harry Helen Henry Irene Jack Jacob James Jane Jason Jean Jeff Jerry Jessica
    Joan Joe John Jordan Judy Julia Karen Kate Keith Kelly Kevin Kyle Larry Laura Linda Lisa Lucy
    Luke Maria Mark Martha Martin Mary Max Megan Nancy Nathan Oscar Paul
    """.split()  # noqa: SIM905, as a list takes a line per name
)
HELD_OUT_NAMES = ("Peter", "Rachel", "Robert", "Sarah", "Simon", "Sophie", "Thomas", "Tim")
"""No two of these ever meet in a training row; each of them meets `NAMES` there."""

WORDS = (BOS, UNKNOWN, END, *FILLERS, *NAMES, *HELD_OUT_NAMES)
"""The vocabulary, by token number."""

GAPS = ((0, 2), (1, 3), (1, 3), (0, 2))
"""Fewest and most fillers before the first name, the second, the third, and the end word."""


def ioi_tokenizer() -> Any:
    """One token per word of `WORDS`, words parted by blanks."""
    return build_word_tokenizer(WORDS, BOS, UNKNOWN)


def indirect_objects(rows: int, seed: int, held_out: bool = False) -> dict[str, Tensor]:
    """BOS, one name twice and another once among fillers, the end word, and the second name again.

    The order (AAB, ABA or BAA) and the places are random, so no place tells the answer: it is the
    name that stood once. Only it has a label.

    Args:
        rows: How many.
        seed: Of all that is drawn.
        held_out: Both names are of `HELD_OUT_NAMES`, rather than at most one.

    Returns:
        The columns of `Rows`, each of shape ``rows 16``, padded on the right.

    Source:
        Wang et al. 2022, arXiv:2211.00593, for the task. Adhikari 2025, arXiv:2510.25013, trains
        attention-only models on symbols of it alone, and finds two heads in one layer enough. The
        third order is ours: with ABBA and BABA alone a place gives the answer away.
    """
    generator = torch.Generator().manual_seed(seed)
    answer, twice = _pairs(rows, generator, held_out).unbind(1)
    once = torch.randint(3, (rows, 1), generator=generator)
    names = torch.where(torch.arange(3) == once, answer[:, None], twice[:, None])
    least, most = torch.tensor(GAPS).T
    fillers = least + (torch.rand(rows, 4, generator=generator) * (most - least + 1)).long()
    # Where the names and the end word stand; the answer comes next, and nothing after it.
    places = (fillers + 1).cumsum(1)
    length = int(most.sum()) + 6
    tokens = torch.randint(len(FILLERS), (rows, length), generator=generator)
    tokens += WORDS.index(FILLERS[0])
    tokens.scatter_(1, places[:, :3], names)
    tokens.scatter_(1, places[:, 3:], WORDS.index(END))
    tokens.scatter_(1, places[:, 3:] + 1, answer[:, None])
    tokens[:, 0] = WORDS.index(BOS)
    position = torch.arange(length)
    real = position <= places[:, 3:] + 1
    asked = position == places[:, 3:] + 1
    return {
        "input_ids": tokens.where(real, WORDS.index(BOS)),
        "attention_mask": real.long(),
        "labels": tokens.where(asked, IGNORED),
        "answers": asked,
    }


def _pairs(rows: int, generator: torch.Generator, held_out: bool) -> Int[Tensor, "rows 2"]:
    """Two names of each row, as tokens."""
    known, unknown = len(NAMES), len(HELD_OUT_NAMES)
    count = unknown if held_out else known + unknown
    first = torch.randint(count, (rows,), generator=generator)
    second = (first + torch.randint(1, count, (rows,), generator=generator)) % count
    pairs = torch.stack([first, second], 1)
    if held_out:
        return pairs + WORDS.index(HELD_OUT_NAMES[0])
    # Two that must not meet: another name takes the place of either.
    either = torch.rand(rows, 2, generator=generator).argsort(1)[:, :1]
    others = torch.randint(known, (rows, 1), generator=generator)
    met = (pairs >= known).all(1, keepdim=True)
    return torch.where(met, pairs.scatter(1, either, others), pairs) + WORDS.index(NAMES[0])


class IndirectObjects(RowsModule):
    """Rows of `indirect_objects`; the two names of a validation row never meet in training.

    Args:
        train_rows: How many rows an epoch has.
        val_rows: How many held-out rows there are.
        batch_size: Rows per batch.
        seed: Of the rows and their order.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        train_rows: int = 192_000,
        val_rows: int = 256,
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        self.train_rows = Rows(indirect_objects(train_rows, 2 * seed))
        self.val_rows = Rows(indirect_objects(val_rows, 2 * seed + 1, held_out=True))


STANDARD = Recipe(steps=3000, batch_size=64, weight_decay=0.1)
"""What `train_ioi` trains by unless told otherwise."""


def train_ioi(
    cache_dir: str | os.PathLike[str],
    seed: int = 0,
    recipe: Recipe | None = None,
    progress_bar: bool = True,
) -> Path:
    """The folder of an IOI model in Hugging Face format with its tokenizer, trained now or earlier.

    Training takes about 35 s on one core and repeats exactly on the same machine. The global
    random state is left as it was found.

    Args:
        cache_dir: Holds one folder per seed and recipe.
        seed: Of the weights and of the data.
        recipe: None for `STANDARD`. The learning rate falls to 0 along a line.
        progress_bar: Show one while training.

    Raises:
        OSError: If the folder cannot be written; nothing is left in its place then.
    """
    recipe = recipe or STANDARD

    def train() -> Any:
        data = IndirectObjects(
            recipe.steps * recipe.batch_size, batch_size=recipe.batch_size, seed=seed
        )
        model = build_attention_only(len(WORDS), seed)
        return train_small(model, data, recipe, "linear", progress_bar)

    return train_once(cache_dir, "ioi", seed, recipe, train, ioi_tokenizer())


def load_ioi(
    cache_dir: str | os.PathLike[str], seed: int = 0, progress_bar: bool = True
) -> tuple[Any, Any]:
    """The IOI model, trained first if need be, and its tokenizer.

    Args:
        cache_dir: See `train_ioi`.
        seed: See `train_ioi`.
        progress_bar: See `train_ioi`.
    """
    return load_model_and_tokenizer(train_ioi(cache_dir, seed, None, progress_bar))
