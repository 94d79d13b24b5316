"""Losses that are due in a step, and the forward pass that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor

from circuitkeep.capture import Backend, probe_mode
from circuitkeep.capture.reach import Reach, watched
from circuitkeep.penalties import Activations
from circuitkeep.reference import Question, observe_all


@dataclass(frozen=True)
class Due:
    """A loss that is due: what must be observed, and what is made of it.

    Attributes:
        backend: Of the model.
        question: Which rows to run, and what is wanted of them.
        loss: The scaled loss. It is given the activations, and for its first time which weights
            the layers used.
        first: Whether it is the first time.
        drop: Called if the loss is not used, because the training step gave none to add it to.
    """

    backend: Backend
    question: Question
    loss: Callable[[Activations, Reach | None], Tensor]
    first: bool = False
    drop: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Seen:
    """What a due step made known; all but the last of this process's rows.

    Attributes:
        step: The optimizer step.
        share: Weight of this process's rows in a mean over processes.
        penalty: Without its weight.
        terms: Of the penalty.
        more: Of a constraint, over the rows of all processes; by what stands for "penalty" in
            their keys.
    """

    step: int
    share: float
    penalty: Tensor
    terms: Mapping[str, Tensor]
    more: Mapping[str, Tensor]


def losses_of(due: Iterable[Due]) -> list[Tensor]:
    """The losses; those of the same model share one forward pass of it over all their rows."""
    return [loss for group in _alike(due) for loss in _observed(group)]


def _alike(due: Iterable[Due]) -> list[list[Due]]:
    """Those that run the same model equally far: a pass that may stop early goes by itself."""
    groups: dict[tuple[int, bool], list[Due]] = {}
    for one in due:
        whole = one.backend.sharded or one.question.sites.logits
        groups.setdefault((id(one.backend.model), whole), []).append(one)
    return list(groups.values())


def _observed(group: list[Due]) -> list[Tensor]:
    """The losses of `group`, from one forward pass."""
    backend = group[0].backend
    look = watched(backend) if any(one.first for one in group) else nullcontext()
    with probe_mode(backend.model), look as reach:
        answers, logits = observe_all(backend, [one.question for one in group])
    losses = [one.loss(now, reach) for one, now in zip(group, answers, strict=True)]
    if backend.sharded and logits is not None:
        # FSDP joins the shards for the backward pass at module outputs: a loss must touch one.
        losses.append(0 * logits.reshape(-1)[:1].float().nan_to_num(0, 0, 0).sum())
    return losses
