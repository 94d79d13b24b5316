"""Clean and corrupted prompts side by side, and what patching between them comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import did_you_mean
from circuitkeep.probes import ProbeBatch

Direction = Literal["denoising", "noising"]
"""*Denoising* puts clean activations into the corrupted run (is this enough?), *noising*
corrupted ones into the clean run (is this needed?)."""


@dataclass(frozen=True)
class Patched:
    """What patching comes to, per row; in the unit of the metric, on the CPU.

    Attributes:
        clean: The metric on the clean prompts.
        corrupted: The metric of the same answers on the corrupted prompts.
        patched: The metric with something patched; further axes are heads, layers or positions.
    """

    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    patched: Float[Tensor, "batch *patch"]

    @property
    def normalised(self) -> Float[Tensor, "*patch"]:
        """Where the patched run stands between the corrupted (0) and the clean one (1).

        Of means over the rows that have answers, not the mean of ratios: one row whose answer
        hardly depends on the corruption would otherwise outweigh all others.

        Raises:
            ValueError: If clean and corrupted prompts have the same mean.
        """
        span = self.clean.nanmean() - self.corrupted.nanmean()
        if span == 0:
            raise ValueError(
                "the metric is the same on clean and corrupted prompts, so there is nothing that "
                "patching could restore; use prompts that differ in the answer's support"
            )
        return (self.patched.nanmean(0) - self.corrupted.nanmean()) / span

    @property
    def normalised_rows(self) -> Float[Tensor, "batch *patch"]:
        """The same per row; NaN in rows without an answer or without a difference."""
        shape = (-1, *[1] * (self.patched.ndim - 1))
        span = self.clean - self.corrupted
        span = span.where(span != 0, torch.nan).view(shape)
        return (self.patched - self.corrupted.view(shape)) / span


def check_pairs(batch: ProbeBatch) -> None:
    """Refuse a batch whose clean and corrupted prompts do not stand position by position.

    Raises:
        ValueError: Naming the first row that does not fit.
    """
    other = batch.corrupted
    if other is None:
        raise ValueError(
            "patching needs clean and corrupted prompts, and this batch has no corrupted ones; "
            "use a probe that makes them"
        )
    if len(other) != len(batch):
        raise ValueError(
            f"{len(batch)} clean prompts but {len(other)} corrupted ones; patching needs pairs"
        )
    lengths = torch.stack([batch.mask.sum(1), other.mask.sum(1)])
    for row in (lengths[0] != lengths[1]).nonzero()[:, 0].tolist():
        raise ValueError(
            f"row {row}: the clean prompt has {int(lengths[0, row])} tokens, the corrupted one "
            f"{int(lengths[1, row])}; patching needs prompts that agree position by position, so "
            "choose words of as many tokens"
        )
    same = len(batch.answer) == len(other.answer) and all(
        torch.equal(getattr(batch, name), getattr(other, name))
        for name in ("answer_row", "answer_position")
    )
    if not same:
        raise ValueError(
            "clean and corrupted prompts are asked for answers at different positions; patching "
            "needs prompts that agree position by position"
        )


def runs(batch: ProbeBatch, direction: str) -> tuple[ProbeBatch, ProbeBatch]:
    """The prompts that are run and those that activations come from, with the clean answers.

    Both in one width; padding behind the longest prompt makes no difference.
    """
    if direction not in get_args(Direction):
        raise ValueError(
            f"unknown direction {direction!r}" + did_you_mean(direction, get_args(Direction))
        )
    assert batch.corrupted is not None
    width = int(batch.mask.sum(1).max())
    clean, corrupted = (
        ProbeBatch(
            tokens=prompts.tokens[:, :width],
            mask=prompts.mask[:, :width],
            targets={},
            answer_row=batch.answer_row,
            answer_position=batch.answer_position,
            answer=batch.answer,
            distractor=batch.distractor,
        )
        for prompts in (batch, batch.corrupted)
    )
    return (corrupted, clean) if direction == "denoising" else (clean, corrupted)
