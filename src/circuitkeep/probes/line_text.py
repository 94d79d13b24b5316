"""Text in lines of one width, of common words or of any.

A line breaks where the next word does not fit. So whoever predicts a break must know three things:
the width, which only the lines so far tell; the characters since the last break; and the length of
the word that would come next. The text that is made here leaves little doubt about the last.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from circuitkeep.probes.base import Split
from circuitkeep.probes.rows import accepted_rows, stable_hash

WORDS = tuple(
    """
    of to in is it as at be by he on or an we if my do no go up
    the and for you not are but his her was all any can had has man new now old see
    that with from they this have were been said each time will year back over long them then
    work hand
    which their there would about other these water could first great where after right house
    while world place small every
    people little before should mother around school father garden always enough almost though
    letter number second summer window street market
    through another between because nothing morning against brother thought country evening
    company kitchen teacher village million problem perhaps whether weather
    together children anything remember business question mountain daughter thousand birthday
    building computer distance exercise hospital language national practice quantity sentence
    something different important beautiful sometimes newspaper afternoon breakfast carefully
    community direction education furniture gentleman influence knowledge languages necessary
    passenger president
    everything government themselves experience difference particular understand university
    photograph population literature impossible discussion department conclusion background
    basketball appearance management technology
    development information necessarily immediately environment performance combination
    comfortable temperature traditional grandfather examination imagination independent
    opportunity celebration restaurants significant underground observation
    relationship organization conversation particularly introduction neighborhood construction
    civilization disappointed satisfaction intelligence professional successfully agricultural
    championship presentation architecture neighbouring intellectual distribution
    international understanding communication circumstances investigation extraordinary
    entertainment determination approximately consciousness concentration consideration
    unfortunately participation establishment manufacturing relationships possibilities
    grandchildren demonstration
    """.split()  # noqa: SIM905, as a list takes a line per word
)
"""Common words, twenty of each length from 2 to 13 letters, so that no length is usual."""

USUAL = 0.9
"""Chance that a word is followed by the one that usually follows it; else by any of `WORDS`."""


def successors(usage: int = 0) -> Int[Tensor, " word"]:
    """Which word usually follows each, by place in `WORDS`: one cycle through all of them.

    Args:
        usage: Seed of the cycle; another one is another text in the same words.
    """
    order = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(usage))
    found = torch.empty_like(order)
    found[order] = order.roll(-1)
    return found


def walks(
    rows: int, length: int, generator: torch.Generator, usage: int = 0
) -> Int[Tensor, "rows length"]:
    """Texts made of `WORDS`, by place in it: each word is drawn by the one before it.

    Args:
        rows: How many texts.
        length: Words of each.
        generator: Of all that is drawn here.
        usage: See `successors`.
    """
    usual = torch.rand(rows, length, generator=generator) < USUAL
    drawn = torch.randint(len(WORDS), (rows, length), generator=generator)
    follows = successors(usage)
    for place in range(1, length):
        drawn[:, place] = torch.where(
            usual[:, place], follows[drawn[:, place - 1]], drawn[:, place]
        )
    return drawn


def allowed_widths(widths: Sequence[int], every: int, split: Split) -> list[int]:
    """The widths of a split: every `every`-th is held out, none at either end.

    Raises:
        ValueError: If there are none.
    """
    low, high = widths
    held_out = range(low + every // 2, high, every)
    found = [width for width in range(low, high + 1) if (width in held_out) == (split != "train")]
    if not found:
        raise ValueError(
            f"no width of {low} to {high} is {split} with every={every}; allow more widths"
        )
    return found


def texts(
    rows: int,
    words: int,
    split: Split,
    generator: torch.Generator,
    file: str | None = None,
    usage: int = 0,
) -> list[list[str]]:
    """Texts of one split, as words.

    Walks belong to a split by the stable hash of all their words. A file is cut into passages of
    ``2 * words`` words, which belong to a split by their hash, and a text is any part of one.

    Args:
        rows: How many texts.
        words: Words of each.
        split: Which.
        generator: Of all that is drawn here.
        file: A text file; None for `walks`.
        usage: See `successors`.

    Raises:
        ValueError: If the file has no passage of the split.
        OSError: If it cannot be read.
    """
    if file is None:

        def draw(number: int) -> Iterator[list[str]]:
            for walk in walks(number, words, generator, usage).tolist():
                yield [WORDS[word] for word in walk]

        return accepted_rows(draw, lambda text: _owner(text) == split, rows)
    found = Path(file).expanduser().read_text(encoding="utf-8").split()
    size = 2 * words
    passages = [found[i : i + size] for i in range(0, len(found) - size + 1, size)]
    passages = [passage for passage in passages if _owner(passage) == split]
    if not passages:
        raise ValueError(
            f"{file} has {len(found)} words, of which no passage of {size} is {split}; use a "
            "longer text or shorter rows"
        )
    which = torch.randint(len(passages), (rows,), generator=generator).tolist()
    start = torch.randint(words + 1, (rows,), generator=generator).tolist()
    return [passages[i][j : j + words] for i, j in zip(which, start, strict=True)]


def _owner(words: Sequence[str]) -> Split:
    return "train" if stable_hash(" ".join(words).encode()) % 2 else "held_out"


def wrap(words: Sequence[str], width: int) -> str:
    """Words in lines of at most `width` characters; a longer word has a line of its own."""
    return textwrap.fill(" ".join(words), width, break_long_words=False, break_on_hyphens=False)
