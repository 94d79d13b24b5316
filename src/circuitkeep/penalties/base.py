"""What penalties compare: activations of guarded heads now and at the reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Activations:
    """What a forward pass on probe rows did at the guarded sites; None where not asked for.

    Heads stand in the order of the circuit's ``heads``; queries are padded per row to the longest
    row and `Labels.query_mask` says which are real.

    Attributes:
        pattern: Post-softmax attention, fp32.
        output: Each guarded head's output: ``z`` (before W_O) or ``result`` (its write into the
            residual stream), as asked.
        log_probs: Next-token log-probabilities at the answer positions, fp32, in nats. A reference
            may hold them of `tokens` and, last, of all others together.
        tokens: Which those are: the likeliest at each answer; None for all tokens, in order.
        answers: Log-probability of each answer, in nats; not in a reference.
        written: Each guarded head's write into the residual stream at each answer.
        direction: A reference alone: what the answer's logit was read along, per unit written.
        attribution: A reference alone: `written` along `direction`, in logits.
        effect: Log-probability of each answer less what it is with the guarded heads ablated, in
            nats.
        points: What the residual stream is, on average over a row's positions, where the variable
            of each of the circuit's manifolds is in the same stretch of values; fp32 at least.
        spread: A reference alone: mean squared distance of each manifold's points from their
            centre, over all its rows.
        frames: A reference alone: their principal directions, as many as the manifold's subspace
            has; others are 0.
        heads: Layer and index of each guarded head; not in a reference.
        W_Q, W_K, W_V, W_O: Each guarded head's weights, the biases of the first three as last row.
        turns: A reference alone: how rotary models turn queries at some offsets; None if they do
            not.
    """

    pattern: Float[Tensor, "batch head query key"] | None = None
    output: Float[Tensor, "batch head query d"] | None = None
    log_probs: Float[Tensor, "answer vocab"] | None = None
    tokens: Int[Tensor, "answer top"] | None = None
    answers: Float[Tensor, " answer"] | None = None
    written: Float[Tensor, "answer head d_model"] | None = None
    direction: Float[Tensor, "answer d_model"] | None = None
    attribution: Float[Tensor, "answer head"] | None = None
    effect: Float[Tensor, " answer"] | None = None
    points: Float[Tensor, "batch manifold point d_model"] | None = None
    spread: Float[Tensor, " manifold"] | None = None
    frames: Float[Tensor, "manifold d_model k"] | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    W_Q: Float[Tensor, "head d_model_1 d_head"] | None = None
    W_K: Float[Tensor, "head d_model_1 d_head"] | None = None
    W_V: Float[Tensor, "head d_model_1 d_value"] | None = None
    W_O: Float[Tensor, "head d_value d_model"] | None = None
    turns: Float[Tensor, "head offset d_head d_head"] | None = None


@dataclass(frozen=True)
class Labels:
    """What the probe says about the rows of an `Activations`.

    Attributes:
        query_mask: Real queries (rows are padded to the longest).
        target_mask: Per head: queries that have a target key for one of the head's roles.
        target: Per head: the target keys of its roles, at those queries.
        answer_row: The row of each answer.
        point_mask: Points of each manifold that have a position in the row; None where no penalty
            reads manifolds.
    """

    query_mask: Bool[Tensor, "batch query"]
    target_mask: Bool[Tensor, "batch head query"]
    target: Bool[Tensor, "batch head query key"]
    answer_row: Int[Tensor, " answer"]
    point_mask: Bool[Tensor, "batch manifold point"] | None = None

    def counted(self, queries: str) -> Bool[Tensor, "batch head query"]:
        """The queries that a penalty over "target" or over "all" queries counts."""
        if queries == "target":
            return self.target_mask
        return self.query_mask[:, None].expand_as(self.target_mask)


Need = Literal[
    "pattern",
    "z",
    "result",
    "log_probs",
    "answers",
    "weights",
    "attribution",
    "effect",
    "manifolds",
]


class Penalty(nn.Module):
    """Maps (now, reference, labels) to a scalar: a mean over probe rows, 0 at the reference.

    Being a mean over rows, it may be computed on shards of the rows and averaged by their share.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """The activations it reads."""

    @property
    def all_queries(self) -> bool:
        """Whether it reads every real query, not only those with a target."""
        return False

    def check_pool(self, labels: Labels) -> None:
        """Refuse a pool of rows on which it would hold nothing; most hold something on any.

        Raises:
            ValueError: With the remedy.
        """

    @abstractmethod
    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The penalty, differentiable in `now`; `reference` never carries a gradient."""


def compared(
    now: Activations,
    reference: Activations,
    name: Literal["pattern", "output", "log_probs", "effect", "points", "W_Q", "W_K", "W_V", "W_O"],
) -> tuple[Tensor, Tensor]:
    """What the reference holds under `name`, without gradient and on the device of now; and now.

    Raises:
        ValueError: If either side lacks it, or they are not of the same shape.
    """
    current, kept = getattr(now, name), getattr(reference, name)
    if current is None or kept is None:
        side = "reference" if kept is None else "current"
        raise ValueError(
            f"the {side} activations hold no {name!r}; capture what the penalty's `needs` lists"
        )
    if current.shape != kept.shape:
        raise ValueError(
            f"{name!r} is now {tuple(current.shape)} and was {tuple(kept.shape)} at the reference; "
            "both must come from the same probe rows and the same heads"
        )
    return kept.detach().to(current.device), current


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of `choices`.

    Raises:
        ValueError: Naming the option, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{option}={value!r}: choose one of {', '.join(map(repr, choices))}")
