"""Whole numbers at positions that any row of tokens tells, whose geometry may be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.circuits import Manifold, did_you_mean
from circuitkeep.probes.base import NO_VALUE, ProbeContext
from circuitkeep.probes.rows import content_mask

Values = Int[Tensor, "batch pos"]


def text_variables(
    names: Iterable[str], tokens: Values, mask: Bool[Tensor, "batch pos"], context: ProbeContext
) -> dict[str, Values]:
    """The variables `names` of `TEXT_VARIABLES`, from the tokens alone.

    ``position`` counts the tokens before, whatever they are. The others need a tokenizer:
    ``token-length`` is a token's characters, ``word-position`` counts the tokens of a word from 0
    (a word begins with the blanks before it), ``sentence-position`` the tokens since the last full
    stop, question or exclamation mark, ``sentence-words`` the words begun since then, and
    ``line-characters`` the characters since the last line break, this token's included. What is
    counted since something has no value before the first of them: how long it has been going on is
    not known there; the row's beginning counts as one if the row starts with BOS.

    Args:
        names: Which.
        tokens: Right-padded.
        mask: True at real tokens; BOS and special tokens have no value, but a position.
        context: Of the probe.

    Raises:
        ValueError: If a name is unknown, or there is no tokenizer for it.
    """
    names = tuple(names)
    for name in names:
        if name not in TEXT_VARIABLES:
            raise ValueError(f"unknown variable {name!r}" + did_you_mean(name, TEXT_VARIABLES))
        if name != "position" and context.tokenizer is None:
            raise ValueError(
                f"the variable {name!r} is told from the text of tokens, and there is no "
                "tokenizer; give one, or choose 'position'"
            )
    content = content_mask(tokens, mask, context)
    found = {}
    for name in names:
        if name == "position":
            values = torch.arange(tokens.shape[1]).expand_as(tokens)
            found[name] = values.where(mask, NO_VALUE)
        else:
            found[name] = _OF_TEXT[name](_Text(tokens, content, context)).where(content, NO_VALUE)
    return found


def classes_of(manifold: Manifold, values: Values) -> Values:
    """The class of each position, from 0; `NO_VALUE` where it has none that counts."""
    first, last = manifold.values
    counts = (values >= first) & (values <= last)
    return ((values - first) // manifold.step).where(counts, NO_VALUE)


class _Text:
    """What the tokens of some rows are as text.

    Attributes:
        length: Characters of each token.
        starts_word, ends_sentence, ends_line: What each token does.
        tail: Characters behind a token's last line break.
        known: Whether a row begins with BOS, so that nothing went before it.
        content: Tokens that count.
    """

    def __init__(
        self, tokens: Values, content: Bool[Tensor, "batch pos"], context: ProbeContext
    ) -> None:
        different, place = tokens.unique(return_inverse=True)
        texts = _texts(context.tokenizer, different)

        def of(tell: Callable[[str], int | bool]) -> Tensor:
            return torch.tensor([int(tell(text)) for text in texts])[place]

        self.content = content
        self.length = of(len)
        # A blank begins the word behind it.
        blank = of(str.isspace).bool()
        begins = of(lambda text: text[:1].isspace()).bool()
        ends = of(lambda text: text[-1:].isspace()).bool() & ~blank
        self.starts_word = (begins & ~_after(blank)) | _after(ends)
        self.starts_word[:, 0] = True
        self.starts_word[:, 1:] |= ~content[:, :-1]
        self.ends_sentence = of(lambda text: text.strip().endswith((".", "!", "?"))).bool()
        self.ends_line = of(lambda text: "\n" in text).bool()
        self.tail = of(lambda text: len(text) - text.rfind("\n") - 1)
        bos = context.bos_token_id
        self.known = tokens[:, 0] == (NO_VALUE if bos is None else bos)


def _texts(tokenizer: Any, tokens: Int[Tensor, " token"]) -> list[str]:
    """Each token's text where it stands within a row, with the blanks that begin it.

    Many tokenizers drop the blank of what they take for the beginning of a text; a token that
    stands twice shows it the second time.
    """
    pairs = tokenizer.batch_decode([[token, token] for token in tokens.tolist()])
    alone = tokenizer.batch_decode([[token] for token in tokens.tolist()])
    return [pair[len(one) :] for pair, one in zip(pairs, alone, strict=True)]


def _since(begins: Bool[Tensor, "batch pos"], amounts: Values, known: Tensor) -> Values:
    """Sum of `amounts` from the latest beginning on, that position's included."""
    total = amounts.cumsum(1)
    before = (total - amounts).where(begins, -1).cummax(1).values
    start = torch.where(known, 0, -1)[:, None]
    before = torch.maximum(before, start)
    return (total - before).where(before >= 0, NO_VALUE)


def _after(ends: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The positions that follow such."""
    return torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)


def _sentence_position(text: _Text) -> Values:
    found = _since(_after(text.ends_sentence), text.content.long(), text.known)
    return (found - 1).where(found != NO_VALUE, NO_VALUE)


def _sentence_words(text: _Text) -> Values:
    words = (text.starts_word & text.content).long()
    return _since(_after(text.ends_sentence), words, text.known)


def _word_position(text: _Text) -> Values:
    return _since(text.starts_word, text.content.long(), text.known) - 1


def _line_characters(text: _Text) -> Values:
    length = torch.where(text.ends_line, text.tail, text.length) * text.content
    return _since(text.ends_line, length, text.known)


_OF_TEXT: dict[str, Callable[[_Text], Values]] = {
    "token-length": lambda text: text.length,
    "word-position": _word_position,
    "sentence-position": _sentence_position,
    "sentence-words": _sentence_words,
    "line-characters": _line_characters,
}

TEXT_VARIABLES = ("position", *_OF_TEXT)
"""What any row tells; see `text_variables`."""
