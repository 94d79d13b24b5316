"""What the base model says of a pool's answers, beyond what a pass observes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.capture.weights import token_weights
from circuitkeep.capture.writes import final_scale, writes
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch

_CHUNK = 32


@torch.no_grad()
def answer_directions(backend: Backend, batch: ProbeBatch) -> Float[Tensor, "answer d_model"]:
    """What the residual stream is read along for each answer's logit, less the distractor's.

    Less the mean of all tokens where there are no distractors. The final norm's scale is folded in,
    and what it divided by at each answer, so that a product with a part of the stream is in logits.

    Raises:
        ValueError: If the batch has no answers, weights are in shards, or the logits are not linear
            in what heads write (see `circuitkeep.capture.writes`).
    """
    _check_answers(batch)
    if backend.sharded:
        raise ValueError(
            "the unembedding is read outside the model's forward pass, where FSDP holds it in "
            "shards; leave AttributionDrift out, train by DDP, or make the reference in one "
            "process and name it (reference=FILE)"
        )
    weights = token_weights(backend, fold_norm=True)
    positions, slot = torch.unique(batch.answer_position, return_inverse=True)
    kept = positions.to(backend.device)
    writes(backend, batch.tokens[:1].to(backend.device), kept)  # refuses what is not linear
    scales = []
    last = backend.n_layers - 1
    with probe_mode(backend.model):
        for tokens in batch.tokens.split(_CHUNK):
            with backend.capture(Sites(resid=(last,), logits=True)) as captured:
                logits = backend.forward(tokens.to(backend.device), kept)
            assert logits is not None
            final = captured.resid[:, 0, kept]
            scales.append(final_scale(backend, final, logits, weights.W_U, weights.b_U))
    answer, distractor = batch.answer.to(kept.device), batch.distractor
    columns = weights.W_U[:, answer]
    if distractor is None:
        columns = columns - weights.W_U.mean(1, keepdim=True)
    else:
        columns = columns - weights.W_U[:, distractor.to(kept.device)]
    return columns.T / torch.cat(scales)[batch.answer_row, slot][:, None]


@torch.no_grad()
def mean_outputs(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch
) -> Float[Tensor, "head d_head"]:
    """Mean output (before W_O) of each head over all real positions, on the CPU.

    Raises:
        ValueError: If the batch has no answers, which an ablation could cost anything.
    """
    _check_answers(batch)
    total = torch.zeros(len(heads), backend.d_head, dtype=torch.float64, device=backend.device)
    with probe_mode(backend.model):
        for tokens, mask in zip(batch.tokens.split(_CHUNK), batch.mask.split(_CHUNK), strict=True):
            with backend.capture(Sites(z=tuple(heads))) as captured:
                backend.forward(tokens.to(backend.device))
            real = mask.to(backend.device, torch.float64)
            total += torch.einsum("bhpd,bp->hd", captured.z.double(), real)
    return (total / batch.mask.sum()).cpu()


def _check_answers(batch: ProbeBatch) -> None:
    if not len(batch.answer):
        raise ValueError(
            "the probe has no answers, so nothing can be attributed to them; leave "
            "AttributionDrift and EffectDrift out, or choose a probe with answers"
        )
