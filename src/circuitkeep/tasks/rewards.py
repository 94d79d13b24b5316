"""What a completion is worth: rewards that are computed, offline, from the completion itself.

A reward is anything that is called with `Completions` and returns one number per completion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_TOKEN = -100
"""Fills the column ``answer`` behind shorter answers."""


@dataclass(frozen=True)
class Completions:
    """What the model wrote, as rewards see it.

    Attributes:
        tokens: What was sampled after the prompt; EOS, if the completion has one, is its last.
        mask: Which of them belong to the completion; the others are padding.
        prompts: The prompts' tokens, without padding, each of shape ``pos``.
        columns: The other columns of the data, such as ``answer``, repeated for each completion.
        tokenizer: A Hugging Face tokenizer; None for a model without text.
    """

    tokens: Int[Tensor, "row new"]
    mask: Bool[Tensor, "row new"]
    prompts: Sequence[Tensor]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    tokenizer: Any = None

    @cached_property
    def texts(self) -> list[str]:
        """The completions as text, without special tokens; empty where EOS came first.

        Raises:
            ValueError: If there is no tokenizer.
        """
        return self._decode([row[kept] for row, kept in zip(self.tokens, self.mask, strict=True)])

    @cached_property
    def prompt_texts(self) -> list[str]:
        """The prompts as text, without special tokens.

        Raises:
            ValueError: If there is no tokenizer.
        """
        return self._decode(self.prompts)

    def _decode(self, rows: Sequence[Tensor]) -> list[str]:
        if self.tokenizer is None:
            raise ValueError(
                "a reward reads text, and the model came without a tokenizer: name one (in the "
                "command line by model.tokenizer=PATH), or use a reward of tokens (AnswerMatch)"
            )
        return [self.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in rows]


Reward = Callable[[Completions], "Tensor | Sequence[float]"]


class AnswerMatch:
    """1 for a completion that begins with the answer, token by token; else 0.

    The answer is the data's column ``answer``. Whatever follows it is not looked at.
    """

    def __call__(self, completions: Completions) -> Float[Tensor, " row"]:
        """See the class.

        Raises:
            ValueError: If the data have no column ``answer``.
        """
        if "answer" not in completions.columns:
            raise ValueError(
                "AnswerMatch needs the column 'answer', and the data have "
                f"{', '.join(map(repr, completions.columns)) or 'no other column'}; give every "
                "prompt an answer, or choose another reward"
            )
        wanted = completions.columns["answer"].to(completions.tokens.device)
        asked = wanted != NO_TOKEN
        width = wanted.shape[1]
        # An answer longer than anything that was sampled is not matched.
        given = torch.nn.functional.pad(
            completions.tokens.masked_fill(~completions.mask, NO_TOKEN)[:, :width],
            (0, max(0, width - completions.tokens.shape[1])),
            value=NO_TOKEN,
        )
        return ((given == wanted) | ~asked).all(1).float()


class PatternMatch:
    """1 for a completion in whose text a regular expression is found; else 0.

    Args:
        pattern: Of Python's `re`, e.g. ``"\\bbecause\\b"``; ``(?i)`` at its start ignores case.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = _compiled(pattern, "PatternMatch")

    def __call__(self, completions: Completions) -> Float[Tensor, " row"]:
        """See the class."""
        return torch.tensor([float(bool(self.pattern.search(t))) for t in completions.texts])


class WordShare:
    """The share of a completion's words that match a regular expression; 0 where there are none.

    Unlike `PatternMatch` it tells a little from a lot, so that there is something to climb.

    Args:
        pattern: Of Python's `re`; it must match a whole word. Words are separated by anything but
            letters, digits, and apostrophes.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = _compiled(pattern, "WordShare")

    def __call__(self, completions: Completions) -> Float[Tensor, " row"]:
        """See the class."""
        return torch.tensor([self._share(text) for text in completions.texts])

    def _share(self, text: str) -> float:
        words = re.findall(r"[\w']+", text)
        return sum(bool(self.pattern.fullmatch(word)) for word in words) / max(1, len(words))


class WeightedRewards:
    """Named rewards, and their weighted sum.

    Args:
        rewards: By the names they are logged under; one that is None is left out.
        weights: By the same names; those not named here weigh 1. A negative one punishes.

    Raises:
        ValueError: If there is no reward, or a weight names none or is not finite.
    """

    def __init__(
        self, rewards: Mapping[str, Reward | None], weights: Mapping[str, float] | None = None
    ) -> None:
        rewards = {name: reward for name, reward in rewards.items() if reward is not None}
        if not rewards:
            raise ValueError("there is no reward; name one, e.g. {'answer': AnswerMatch()}")
        for name, weight in (weights or {}).items():
            if name not in rewards:
                raise ValueError(f"a weight for {name!r}; the rewards are {', '.join(rewards)}")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of reward {name!r} is {weight}; it must be finite")
        self.rewards = rewards
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in rewards}

    def __call__(
        self, completions: Completions
    ) -> tuple[Float[Tensor, " row"], dict[str, Float[Tensor, " row"]]]:
        """The sum, and each reward by name without its weight.

        Raises:
            ValueError: If a reward does not give one finite number per completion.
        """
        each = {name: self._checked(name, completions) for name in self.rewards}
        total = torch.stack([self.weights[name] * value for name, value in each.items()]).sum(0)
        return total, each

    def _checked(self, name: str, completions: Completions) -> Float[Tensor, " row"]:
        rows = len(completions.tokens)
        values = torch.as_tensor(
            self.rewards[name](completions), dtype=torch.float32, device=completions.tokens.device
        )
        if values.shape != (rows,):
            raise ValueError(
                f"reward {name!r} gave numbers of shape {tuple(values.shape)} for {rows} "
                "completions; it must give one for each"
            )
        if not values.isfinite().all():
            row = int((~values.isfinite()).nonzero()[0])
            raise ValueError(
                f"reward {name!r} gave {values[row].item()} for completion {row}; return a finite "
                "number, 0 if the completion cannot be judged"
            )
        return values.detach()


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from error
