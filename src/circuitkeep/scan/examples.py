"""A few prompts of the probe, and where every head attends on them: what a reader looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.circuits import Head
from circuitkeep.pages.attention import LONGEST, packed, shown_patterns, token_text
from circuitkeep.probes import Probe, ProbeBatch
from circuitkeep.probing import probe_context, roles_of

ENOUGH = 48
"""Rather than crop prompts below this, show fewer of them."""
PACKED_BYTES = 4_500_000
"""Of all patterns; a third more as base64, so that the page stays below 10 MB."""


@dataclass(frozen=True)
class Answer:
    """What the probe asks at one position.

    Attributes:
        position: Of the token that predicts it.
        token: What should come next.
        distractor: The wrong token it is compared with, where there is one.
    """

    position: int
    token: str
    distractor: str | None


@dataclass(frozen=True)
class Example:
    """One prompt, or the part of it that is shown; positions count from the first shown token.

    Attributes:
        tokens: As text, signs for what cannot be seen; see
            `circuitkeep.pages.attention.token_text`.
        patterns: Attention in 255ths; pairs stand query by query: (0, 0), (1, 0), (1, 1), (2, 0).
        targets: Role -> the pairs (query, key) that the probe labels.
        answers: What it asks.
        start: Tokens of the prompt that stand before those shown.
        length: Tokens of the whole prompt.
    """

    tokens: tuple[str, ...]
    patterns: UInt8[Tensor, "layer head pair"]
    targets: Mapping[str, tuple[tuple[int, int], ...]]
    answers: tuple[Answer, ...]
    start: int
    length: int

    def packed(self) -> str:
        """The patterns as base64, layer by layer and head by head."""
        return packed(self.patterns)


@dataclass(frozen=True)
class Examples:
    """Held-out prompts of a probe and all heads' patterns on them.

    Attributes:
        prompts: Of different families of the probe's prompts, where it has several.
        asked: How many were asked for.
    """

    prompts: tuple[Example, ...]
    asked: int

    @property
    def left_out(self) -> str | None:
        """What was left out to keep the page small, in one sentence."""
        parts = []
        if len(self.prompts) < self.asked:
            parts.append(f"{len(self.prompts)} of {self.asked} prompts are shown")
        cropped = [prompt for prompt in self.prompts if len(prompt.tokens) < prompt.length]
        if cropped:
            longest = max(prompt.length for prompt in cropped)
            parts.append(
                f"prompts of up to {longest} tokens are cut to "
                f"{max(len(prompt.tokens) for prompt in cropped)}"
            )
        text = " and ".join(parts)
        return f"{text[:1].upper()}{text[1:]}, to keep the page small." if parts else None


def take_examples(
    backend: Backend,
    tokenizer: Any,
    probe: Probe,
    roles: Sequence[str] | None = None,
    prompts: int = 4,
    seed: int = 10_000,
) -> Examples:
    """Capture the patterns of all heads on a few held-out prompts.

    Fewer or cropped prompts are taken where the patterns would be too large for a page.

    Args:
        backend: The model.
        tokenizer: Its tokenizer; None for token numbers instead of text.
        probe: Makes the prompts.
        roles: Whose targets are wanted (all that the probe labels, if None).
        prompts: How many.
        seed: Of the prompts.

    Raises:
        ValueError: If there is no prompt to show, the probe does not label a role, or its prompts
            do not fit the model.
    """
    if prompts < 1:
        raise ValueError(f"examples need at least one prompt, got prompts={prompts}")
    wanted = roles_of(probe, roles)
    context = probe_context(backend, tokenizer)
    # A few times as many as are shown, among which different families are looked for.
    batch = probe.batch(context, "held_out", 4 * prompts, seed)
    rows = _of_many_families(batch)
    heads = backend.n_layers * backend.n_heads
    number, length = _fitting(heads, int(batch.mask[rows[:prompts]].sum(1).max()), prompts)
    taken = [
        _example(backend, tokenizer, batch.select(rows[row : row + 1]), wanted, length)
        for row in range(number)
    ]
    return Examples(tuple(taken), prompts)


def _of_many_families(batch: ProbeBatch) -> Int[Tensor, " batch"]:
    """The rows, the first of every family in front."""
    seen: set[int] = set()
    first, others = [], []
    families = [0] * len(batch) if batch.family is None else batch.family.tolist()
    for row, family in enumerate(families):
        (others if family in seen else first).append(row)
        seen.add(family)
    return torch.tensor(first + others)


def _fitting(heads: int, longest: int, prompts: int) -> tuple[int, int]:
    """How many prompts, of how many tokens at most, can be shown of so many heads."""
    longest = min(longest, LONGEST)
    length = 1
    for number in range(prompts, 0, -1):
        pairs = PACKED_BYTES // (heads * number)
        length = max(1, (isqrt(8 * pairs + 1) - 1) // 2)  # T with T (T + 1) / 2 <= pairs
        if length >= min(longest, ENOUGH):
            return number, min(length, longest)
    return 1, length


def _example(
    backend: Backend, tokenizer: Any, row: ProbeBatch, roles: Sequence[str], most: int
) -> Example:
    """One prompt, cropped to `most` tokens."""
    length = int(row.mask.sum())
    pairs = {role: row.targets[role][0].nonzero() for role in roles}
    start = _best_start([*pairs.values(), row.answer_position[:, None].expand(-1, 2)], length, most)
    stop = min(start + most, length)
    tokens = row.tokens[:, :stop]

    def text(token: Tensor) -> str:
        return token_text(tokenizer, int(token))

    answers = [
        Answer(
            int(position) - start,
            text(row.answer[number]),
            None if row.distractor is None else text(row.distractor[number]),
        )
        for number, position in enumerate(row.answer_position)
        if start <= position < stop
    ]
    targets = {
        role: tuple((int(q) - start, int(k) - start) for q, k in own if k >= start and q < stop)
        for role, own in pairs.items()
    }
    every = [Head(layer, i) for layer in range(backend.n_layers) for i in range(backend.n_heads)]
    return Example(
        tuple(text(token) for token in tokens[0, start:]),
        shown_patterns(backend, tokens.to(backend.device), every, start).unflatten(
            0, (backend.n_layers, backend.n_heads)
        ),
        targets,
        tuple(answers),
        start,
        length,
    )


def _best_start(labels: Sequence[Int[Tensor, "_ 2"]], length: int, most: int) -> int:
    """Where the window of `most` tokens begins: at the front, unless half of the labels are lost.

    Many heads attend to the first tokens, and a reader wants to see that.
    """
    starts = max(length - most, 0) + 1
    held = torch.zeros(starts + 1, dtype=torch.long)
    for query, key in torch.cat(list(labels)).tolist():
        # The pair lies in windows that begin from `query - most + 1` to `key`.
        first, last = max(query - most + 1, 0), min(key, starts - 1)
        if first <= last:
            held[first] += 1
            held[last + 1] -= 1
    count = held[:-1].cumsum(0)
    best = int(count.argmax())
    return 0 if 2 * count[0] >= count[best] else best
