"""The tokens of text in lines, and what is known at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.probes.base import NO_VALUE, Split
from circuitkeep.probes.line_text import allowed_widths, texts, wrap


@dataclass(frozen=True)
class Lines:
    """Rows of tokens of text in lines; `NO_VALUE` where something is not known.

    Attributes:
        tokens: Each row begins with BOS, where there is one, and with a line.
        mask: True at real tokens.
        newline: Where a token holds a line break.
        characters: Since the last line break, this token's included: 0 at a line break.
        width: Of the row's lines, at every token of its text.
        line: Line breaks so far.
        next_length: At the last token of a word, the characters of the next word, whether it
            comes on the same line or not.
        next_token: There, the first token of that word on the same line.
    """

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    newline: Bool[Tensor, "row pos"]
    characters: Int[Tensor, "row pos"]
    width: Int[Tensor, "row pos"]
    line: Int[Tensor, "row pos"]
    next_length: Int[Tensor, "row pos"]
    next_token: Int[Tensor, "row pos"]

    @property
    def breaks(self) -> Bool[Tensor, "row pos"]:
        """The last tokens of lines, after which a line break comes."""
        found = torch.zeros_like(self.newline)
        found[:, :-1] = self.newline[:, 1:] & (self.next_length[:, :-1] != NO_VALUE)
        return found


def draw_lines(
    tokenizer: Any,
    rows: int,
    length: int,
    split: Split,
    seed: int,
    *,
    bos: int | None,
    widths: Sequence[int] = (20, 80),
    every: int = 5,
    file: str | None = None,
    usage: int = 0,
) -> Lines:
    """Rows of text of one split, each in lines of some width of that split.

    Args:
        tokenizer: A fast one of Hugging Face, which tells where in the text a token stands.
        rows: How many.
        length: Tokens of each, BOS included.
        split: Of the text and of the widths.
        seed: The same seed gives the same rows.
        bos: Begins each row; None for none.
        widths: Narrowest and widest, in characters.
        every: Every so many widths one is held out.
        file: See `texts`.
        usage: See `successors`.

    Raises:
        ValueError: If there is no such tokenizer, text or width, or a tokenizer loses line breaks.
    """
    if tokenizer is None or not tokenizer.is_fast:
        raise ValueError(
            "text in lines needs a tokenizer that tells where tokens stand (a fast one of Hugging "
            f"Face), and got {type(tokenizer).__name__}; use a model that comes with one"
        )
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor(allowed_widths(widths, every, split))
    drawn = allowed[torch.randint(len(allowed), (rows,), generator=generator)]
    # A row holds fewer words than tokens, so that a word beyond its end is known too.
    words = texts(rows, length + 1, split, generator, file, usage)
    return read_lines(words, drawn.tolist(), tokenizer, length, bos)


def read_lines(
    words: Sequence[Sequence[str]],
    widths: Sequence[int],
    tokenizer: Any,
    length: int,
    bos: int | None,
) -> Lines:
    """What is known at each token of texts in lines; see `Lines` and `draw_lines`.

    Args:
        words: Of each text; no fewer than its row has tokens.
        widths: Of the lines of each.
        tokenizer: See `draw_lines`.
        length: Tokens of each row, BOS included.
        bos: Begins each row; None for none.
    """
    first = _first_tokens({word for text in words for word in text}, tokenizer)
    start = 0 if bos is None else 1
    columns = np.full((len(_Known._fields), len(words), length), NO_VALUE)
    for row, (text, width) in enumerate(zip(words, widths, strict=True)):
        known = np.stack(_known(text, width, tokenizer, first))[:, : length - start]
        columns[:, row, start : start + known.shape[1]] = known
    found = _Known(*torch.from_numpy(columns))
    mask = found.characters != NO_VALUE
    newline = found.newline == 1
    if bos is not None:
        found.tokens[:, 0] = bos
        mask[:, 0] = True
    return Lines(found.tokens, mask, newline, *found[2:])


class _Known(NamedTuple):
    """The columns of `Lines` without the mask, for one text or all."""

    tokens: Any
    newline: Any
    characters: Any
    width: Any
    line: Any
    next_length: Any
    next_token: Any


def _known(text: Sequence[str], width: int, tokenizer: Any, first: Mapping[str, int]) -> _Known:
    wrapped = wrap(text, width)
    read = tokenizer(wrapped, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begin, end = np.array(read["offset_mapping"]).T
    # Of each character: its place, the line breaks and blanks up to it, the place of the last one.
    blank = np.array([character in " \n" for character in wrapped] + [True])
    broken = np.array([character == "\n" for character in wrapped] + [False])
    place = np.arange(len(broken))
    lines, blanks = broken.cumsum(), blank.cumsum()
    last_break = np.maximum.accumulate(np.where(broken, place, -1))
    last = np.maximum(end, 1) - 1
    # Several tokens may stand for one letter; a word ends with the last of them.
    complete = np.append(begin[1:] >= end[:-1], True)
    ends = complete & ~blank[last] & blank[end] & (blanks[last] + 1 < len(text))
    words: list[int] = blanks[last].tolist()
    following = [text[word + 1] if here else "" for word, here in zip(words, ends, strict=True)]
    newline = lines[last] > lines[begin] - broken[begin]
    if broken.any() and not newline.any():
        raise ValueError(
            "the tokenizer loses line breaks: no token of a text in lines holds one; use another "
            "tokenizer, or model=linebreaks"
        )
    return _Known(
        tokens=np.array(read["input_ids"]),
        newline=newline,
        characters=last - last_break[last],
        width=np.full(len(end), width),
        line=lines[last],
        next_length=np.where(ends, [len(word) for word in following], NO_VALUE),
        next_token=np.array([first.get(word, NO_VALUE) for word in following]),
    )


def _first_tokens(words: Iterable[str], tokenizer: Any) -> dict[str, int]:
    """Of each word, its first token where it stands after another word and a blank."""
    listed = sorted(words)

    def encode(some: list[str]) -> list[list[int]]:
        return tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]

    # Not the word alone: many tokenizers treat the beginning of a text as a word's beginning.
    before = len(encode(["a"])[0])
    found = encode([f"a {word}" for word in listed])
    return {word: ids[before] for word, ids in zip(listed, found, strict=True)}
