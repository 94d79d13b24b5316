"""What a model makes of a probe's answers: the numbers that every intervention is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import did_you_mean
from circuitkeep.probes import ProbeBatch

Metric = Literal["log_prob_nats", "logit_difference"]
"""Log-probability of the answer (the loss with its sign turned), or logit of the answer minus
logit of the distractor; of both, more is better."""

CHUNK = 32
"""Rows per forward pass of every measurement; results do not depend on it."""

TOGETHER = 512
"""Answers per unembedding, about: enough for a fast product, few enough for memory."""


def chunks(batch: ProbeBatch, device: torch.device) -> Iterator[ProbeBatch]:
    """The rows of `batch`, a few at a time, on `device`."""
    for rows in torch.arange(len(batch)).split(CHUNK):
        yield batch.select(rows).to(device)


def check_metric(metric: str, batch: ProbeBatch) -> None:
    """Refuse an unknown metric, and one that the batch cannot give.

    Raises:
        ValueError: Naming the metric and the remedy.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"unknown metric {metric!r}" + did_you_mean(metric, get_args(Metric)))
    if not len(batch.answer):
        raise ValueError("the batch has no answers, so no metric can be taken on it")
    if metric == "logit_difference" and batch.distractor is None:
        raise ValueError(
            "metric 'logit_difference' needs distractors, which the batch does not have; use "
            "'log_prob_nats'"
        )


def answer_slots(batch: ProbeBatch) -> tuple[Int[Tensor, " kept"], Int[Tensor, " answer"]]:
    """The positions at which logits are needed, and for each answer its place among them."""
    positions, slot = torch.unique(batch.answer_position, return_inverse=True)
    return positions, slot


def score_logits(
    logits: Float[Tensor, "row kept vocab"], batch: ProbeBatch, metric: Metric
) -> Float[Tensor, "copy batch"]:
    """The metric per row (fp32 at least), of one or several copies of the batch's rows in turn.

    Args:
        logits: At the positions of `answer_slots`; as many rows as the batch, or a multiple.
        batch: Names the answers; on the device of the logits.
        metric: See `Metric`.

    Returns:
        Means over each row's answers; NaN for rows without an answer.
    """
    _, slot = answer_slots(batch)
    return score_asked(
        logits.unflatten(0, (-1, len(batch)))[:, batch.answer_row, slot], batch, metric
    )


def score_asked(
    logits: Float[Tensor, "copy answer vocab"], batch: ProbeBatch, metric: Metric
) -> Float[Tensor, "copy batch"]:
    """`score_logits`, of the logits at the batch's answers and nowhere else."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    answer = batch.answer.expand(len(logits), -1)[..., None]
    value = logits.gather(2, answer)[..., 0]
    if metric == "logit_difference":
        assert batch.distractor is not None
        other = batch.distractor.expand(len(logits), -1)[..., None]
        value = value - logits.gather(2, other)[..., 0]
    else:
        value = value - logits.logsumexp(-1)
    return torch.stack([mean_by_row(copy, batch) for copy in value])


def asked_of(
    hidden: Float[Tensor, "row pos d_model"], batch: ProbeBatch
) -> Float[Tensor, "copy answer d_model"]:
    """The residual stream where answers are asked for, of copies of the batch's rows in turn."""
    return hidden.unflatten(0, (-1, len(batch)))[:, batch.answer_row, batch.answer_position]


def score_asked_streams(
    backend: Backend,
    asked: Float[Tensor, "copy answer d_model"],
    batch: ProbeBatch,
    metric: Metric,
) -> Float[Tensor, "copy batch"]:
    """`score_logits`, from the residual stream after the last layer, where answers are asked for.

    Only the answers are unembedded. Rows differ in where they are asked, so the positions that
    some row is asked at are many more than each row's own, and a vocabulary is wide.
    """
    found = []
    for part in asked.split(max(1, TOGETHER // max(1, len(batch.answer)))):
        alone = part.flatten(0, 1)[:, None]
        with probe_mode(backend.model):
            # No layer runs, so the tokens only tell how many rows there are.
            tokens = batch.tokens[:1, :1].expand(len(alone), 1)
            logits = backend.resume(backend.n_layers, alone, tokens)
        assert logits is not None
        found.append(score_asked(logits[:, 0].unflatten(0, part.shape[:2]), batch, metric))
    return torch.cat(found)


def score_answers(
    backend: Backend, batch: ProbeBatch, metric: Metric = "log_prob_nats"
) -> Float[Tensor, " batch"]:
    """The metric per row, of rows that fit one pass, under whatever edits are open.

    Args:
        backend: The model.
        batch: On the model's device.
        metric: See `Metric`.
    """
    positions, _ = answer_slots(batch)
    with probe_mode(backend.model), backend.capture(Sites(logits=True)):
        logits = backend.forward(batch.tokens, positions)
    assert logits is not None
    return score_logits(logits, batch, metric)[0]


@torch.no_grad()
def answer_log_probs(
    backend: Backend, batch: ProbeBatch
) -> tuple[Float[Tensor, "answer vocab"], ProbeBatch]:
    """Next-token log-probabilities (nats, fp32) at the answers of rows that fit one pass.

    Returns:
        The log-probabilities and the batch, on the model's device.
    """
    batch = batch.to(backend.device)
    positions, slot = answer_slots(batch)
    with probe_mode(backend.model), backend.capture(Sites(logits=True)):
        logits = backend.forward(batch.tokens, positions)
    assert logits is not None
    return logits[batch.answer_row, slot].float().log_softmax(-1), batch


def mean_by_row(values: Float[Tensor, " answer"], batch: ProbeBatch) -> Float[Tensor, " batch"]:
    """Mean of each row's answer values; NaN for rows without an answer."""
    zeros = torch.zeros(len(batch), device=values.device, dtype=values.dtype)
    total = zeros.index_add(0, batch.answer_row, values)
    return total / zeros.index_add(0, batch.answer_row, torch.ones_like(values))


@torch.no_grad()
def answer_loss(backend: Backend, batch: ProbeBatch) -> Float[Tensor, " batch"]:
    """Cross-entropy of the right answer, in nats per answer token, per row (on the CPU)."""
    parts = chunks(batch, backend.device)
    return torch.cat([-score_answers(backend, part).cpu() for part in parts])
