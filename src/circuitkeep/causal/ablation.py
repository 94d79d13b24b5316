"""Mean ablation of named heads, and what it costs on the answers of a probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch

CHUNK = 32
"""Rows per forward pass of every measurement; results do not depend on it."""


def chunks(batch: ProbeBatch, device: torch.device) -> Iterator[ProbeBatch]:
    """The rows of `batch`, a few at a time, on `device`."""
    for rows in torch.arange(len(batch)).split(CHUNK):
        yield batch.select(rows).to(device)


@torch.no_grad()
def mean_outputs(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch
) -> dict[Head, Float[Tensor, " d_head"]]:
    """Mean output (before W_O) of each head, over all real positions of all rows of `batch`.

    This is what mean ablation puts in the head's place.
    """
    total = torch.zeros(len(heads), backend.d_head, device=backend.device, dtype=torch.float64)
    count = 0
    sites = Sites(z=tuple(heads))
    with probe_mode(backend.model):
        for part in chunks(batch, backend.device):
            with backend.capture(sites) as captured:
                backend.forward(part.tokens)
            # Without a float64 device (MPS) the sum would have to be fp32; none is supported.
            total += torch.einsum("bhpd,bp->hd", captured.z.double(), part.mask.double())
            count += int(part.mask.sum())
    return dict(zip(heads, (total / count).unbind(0), strict=True))


@torch.no_grad()
def answer_log_probs(
    backend: Backend, batch: ProbeBatch
) -> tuple[Float[Tensor, "answer vocab"], ProbeBatch]:
    """Next-token log-probabilities (nats, fp32) at the answers of rows that fit one pass.

    Returns:
        The log-probabilities and the batch, on the model's device.
    """
    batch = batch.to(backend.device)
    positions, slot = torch.unique(batch.answer_position, return_inverse=True)
    with probe_mode(backend.model), backend.capture(Sites(logits=True)):
        logits = backend.forward(batch.tokens, positions)
    assert logits is not None
    return logits[batch.answer_row, slot].float().log_softmax(-1), batch


def mean_by_row(values: Float[Tensor, " answer"], batch: ProbeBatch) -> Float[Tensor, " batch"]:
    """Mean of each row's answer values; NaN for rows without an answer."""
    zeros = torch.zeros(len(batch), device=values.device, dtype=values.dtype)
    total = zeros.index_add(0, batch.answer_row, values)
    return total / zeros.index_add(0, batch.answer_row, torch.ones_like(values))


def answer_loss(backend: Backend, batch: ProbeBatch) -> Float[Tensor, " batch"]:
    """Cross-entropy of the right answer, in nats per answer token, per row (on the CPU)."""
    losses = []
    for part in chunks(batch, backend.device):
        log_probs, part = answer_log_probs(backend, part)
        losses.append(mean_by_row(-log_probs.gather(1, part.answer[:, None])[:, 0], part).cpu())
    return torch.cat(losses)


def ablation_effect(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch
) -> Float[Tensor, " batch"]:
    """How many nats per answer token it costs, per row, to mean-ablate `heads` jointly.

    The means are taken over the batch's own real positions, of the same model. Other heads may
    make up for the ablated ones (self-repair, McGrath et al. 2023, arXiv:2307.15771), so this is
    a lower bound on what the heads do.
    """
    clean = answer_loss(backend, batch)
    with backend.ablate(mean_outputs(backend, heads, batch)):
        return answer_loss(backend, batch) - clean
