"""Where heads attend on prompts of the user's own, in the base and every checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.circuits import Circuit, Head
from circuitkeep.pages.attention import LONGEST, shown_patterns, token_text

PAGE_BYTES = 2_500_000
"""Of all patterns; a third more as base64, beside 5 MB of plotly.js on a page below 10 MB."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and where heads attend on it.

    Attributes:
        text: As it was given.
        tokens: As text; see `circuitkeep.pages.attention.token_text`.
        heads: Whose patterns there are: all of the model's, or if that would be too much for a
            page, those that the circuits name.
        patterns: Of the base, then of each checkpoint: attention in 255ths, see `shown_patterns`.
    """

    text: str
    tokens: tuple[str, ...]
    heads: tuple[str, ...]
    patterns: tuple[UInt8[Tensor, "head pair"], ...]

    def rows(self, model: int, head: str) -> list[list[float]]:
        """Query by query the attention to each key up to it, with three digits."""
        values = self.patterns[model][self.heads.index(head)].tolist()
        starts = [query * (query + 1) // 2 for query in range(len(self.tokens))]
        return [
            [round(value / 255, 3) for value in values[start : start + query + 1]]
            for query, start in enumerate(starts)
        ]


def read_prompt(tokenizer: Any, text: str) -> Int[Tensor, "1 pos"]:
    """The tokens of a prompt, as the tokenizer makes them of it, special ones included.

    Args:
        tokenizer: None for a model without one: the prompt is then token numbers.
        text: The prompt.

    Raises:
        ValueError: If it is empty, too long to be looked at, or no token numbers.
    """
    if not text.strip():
        raise ValueError('a prompt is empty: write one as in prompts=["some text"]')
    if tokenizer is None:
        parts = re.split(r"[,\s]+", text.strip())
        if not all(part.isdecimal() for part in parts):
            raise ValueError(
                f"prompt {_short(text)!r}: the base model has no tokenizer, so write token "
                'numbers, as in prompts=["0 5 9 5"], or name a tokenizer by tokenizer=DIRECTORY'
            )
        tokens = [int(part) for part in parts]
    else:
        tokens = list(tokenizer(text)["input_ids"])
    if len(tokens) > LONGEST:
        raise ValueError(
            f"prompt {_short(text)!r} has {len(tokens)} tokens, and at most {LONGEST} can be "
            "shown; shorten it"
        )
    return torch.tensor([tokens])


def chosen_heads(
    backend: Backend, circuits: Sequence[Circuit], prompts: Sequence[Tensor], models: int
) -> tuple[Head, ...]:
    """All heads of the model if a page can hold their patterns, or else those the circuits name.

    Raises:
        ValueError: If a page cannot hold those either, or a prompt does not fit the model.
    """
    for tokens in prompts:
        count, largest = tokens.shape[1], int(tokens.max())
        if count > backend.context_length:
            raise ValueError(
                f"a prompt has {count} tokens, and the model's context is "
                f"{backend.context_length}; shorten it"
            )
        if largest >= backend.vocab_size:
            raise ValueError(
                f"a prompt has the token {largest}, and the model's tokens run from 0 to "
                f"{backend.vocab_size - 1}"
            )
    pairs = sum(tokens.shape[1] * (tokens.shape[1] + 1) // 2 for tokens in prompts)
    every = tuple(
        Head(layer, i) for layer in range(backend.n_layers) for i in range(backend.n_heads)
    )
    named = tuple(sorted({head for circuit in circuits for head in circuit.heads}))
    for heads in (every, named):
        if len(heads) * pairs * models <= PAGE_BYTES:
            return heads
    raise ValueError(
        f"{len(prompts)} prompts are too much for a page with {len(named)} heads and {models} "
        "models; name fewer or shorter prompts, or fewer checkpoints"
    )


def pattern_of(
    backend: Backend, tokens: Int[Tensor, "1 pos"], heads: Sequence[Head]
) -> UInt8[Tensor, "head pair"]:
    """Attention of `heads` on a prompt, in 255ths."""
    return shown_patterns(backend, tokens.to(backend.device), heads)


def texts(tokenizer: Any, tokens: Int[Tensor, "1 pos"]) -> tuple[str, ...]:
    """The tokens as they are shown."""
    return tuple(token_text(tokenizer, token) for token in tokens[0].tolist())


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:38]}…"
