"""What every probe is: a seeded generator of prompts with labelled structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Split = Literal["train", "held_out"]
"""*train* probes feed the penalty, *held-out* probes every reported number."""

NO_VALUE = -1
"""In `ProbeBatch.variables`, at positions where a variable has no value."""


@dataclass(frozen=True)
class Effect:
    """What a head of a role does to the logit of the answer, beside where it attends.

    Attributes:
        writes: ``for`` the answer or ``against`` it, directly; None if that is not said.
        backs_up: The role whose heads it stands in for: once they are ablated it writes more for
            the answer than before, and attends as its own role says; None for no role.

    Raises:
        ValueError: If both or neither is said, or `writes` is neither for nor against.
    """

    writes: str | None = None
    backs_up: str | None = None

    def __post_init__(self) -> None:
        if (self.writes is None) == (self.backs_up is None):
            raise ValueError("an effect says either what a head writes or which role it backs up")
        if self.writes not in (None, "for", "against"):
            raise ValueError(f"a head writes 'for' or 'against' the answer, got {self.writes!r}")


@dataclass(frozen=True)
class ProbeContext:
    """What a probe may know of the model it is made for.

    Attributes:
        vocab_size: Tokens are below this.
        context_length: Prompts are at most this long, in tokens.
        bos_token_id: First token of every prompt; None where the model has none.
        special_token_ids: Never drawn at random.
        tokenizer: A Hugging Face tokenizer, or None for models without text.
        sample: ``sample(rows, length, seed)`` draws token sequences from the *base* model at
            temperature 1, each starting with BOS; shape ``rows length``.
    """

    vocab_size: int
    context_length: int
    bos_token_id: int | None
    special_token_ids: frozenset[int] = frozenset()
    tokenizer: Any = None
    sample: Callable[[int, int, int], Int[Tensor, "rows length"]] | None = None


@dataclass(frozen=True)
class ProbeBatch:
    """Prompts and what is known about them; everything on one device.

    Attributes:
        tokens: Padded on the right.
        mask: True at real tokens.
        targets: Per role, which keys a head of the role should attend to, from which queries.
        answer_row: For each answer token, its row.
        answer_position: The position whose next-token distribution should give the answer.
        answer: The token that should come next.
        distractor: The wrong token a logit difference is taken against, where there is one.
        corrupted: The same answers asked in prompts that do not support them (another name in
            the context), row by row and answer by answer, for the advantage of the context.
        family: Which of the probe's templates a row comes from, where it has several kinds; what
            is found must hold in each.
        variables: Whole numbers from 0 that the probe knows at positions, by name: how many
            characters a line has so far, say; `NO_VALUE` where there is none.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    targets: Mapping[str, Bool[Tensor, "batch query key"]]
    answer_row: Int[Tensor, " answer"]
    answer_position: Int[Tensor, " answer"]
    answer: Int[Tensor, " answer"]
    distractor: Int[Tensor, " answer"] | None = None
    corrupted: ProbeBatch | None = None
    family: Int[Tensor, " batch"] | None = None
    variables: Mapping[str, Int[Tensor, "batch pos"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, rows: Int[Tensor, " row"]) -> ProbeBatch:
        """The prompts `rows`, in that order, with their labels."""
        order = (self.answer_row[None, :] == rows[:, None]).nonzero()
        kept = order[:, 1]
        return ProbeBatch(
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            targets={role: target[rows] for role, target in self.targets.items()},
            answer_row=order[:, 0],
            answer_position=self.answer_position[kept],
            answer=self.answer[kept],
            distractor=None if self.distractor is None else self.distractor[kept],
            corrupted=None if self.corrupted is None else self.corrupted.select(rows),
            family=None if self.family is None else self.family[rows],
            variables={name: values[rows] for name, values in self.variables.items()},
        )

    def to(self, device: torch.device | str) -> ProbeBatch:
        """The same batch on another device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            targets={role: target.to(device) for role, target in self.targets.items()},
            answer_row=self.answer_row.to(device),
            answer_position=self.answer_position.to(device),
            answer=self.answer.to(device),
            distractor=None if self.distractor is None else self.distractor.to(device),
            corrupted=None if self.corrupted is None else self.corrupted.to(device),
            family=None if self.family is None else self.family.to(device),
            variables={name: values.to(device) for name, values in self.variables.items()},
        )


class Probe(ABC):
    """A seeded generator of `ProbeBatch`.

    Subclasses are plain dataclasses of their settings, so that a circuit file can name them:
    ``probe: {_target_: circuitkeep.probes.RepeatedTokens, length: 32}``.
    """

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The roles whose targets this probe labels."""

    @property
    @abstractmethod
    def behaviours(self) -> tuple[str, ...]:
        """Which of `circuitkeep.circuits.BEHAVIOURS` its answers allow."""

    @property
    def variables(self) -> tuple[str, ...]:
        """What its batches know at positions, beside what any row tells."""
        return ()

    @property
    def effects(self) -> Mapping[str, Effect]:
        """What heads of a role do to the answer, for the roles of which that is known."""
        return {}

    def at_length(self, length: int) -> Probe:
        """The same probe with prompts of `length` tokens: as much to find, in more context.

        Raises:
            ValueError: If the probe's prompts have no length to choose, or it is too short.
        """
        raise ValueError(f"the length of {type(self).__name__}'s prompts cannot be chosen")

    @abstractmethod
    def batch(self, context: ProbeContext, split: Split, rows: int, seed: int) -> ProbeBatch:
        """Make `rows` prompts; the same arguments give the same prompts.

        Raises:
            ValueError: If the prompts do not fit the context, or the split cannot give them.
        """
