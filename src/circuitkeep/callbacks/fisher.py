"""How much each weight matters to what the model answers."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitkeep.capture import Backend, probe_mode
from circuitkeep.probes import ProbeBatch

FISHERS = ("true", "empirical")


def diagonal_fisher(
    backend: Backend, batch: ProbeBatch, kind: str = "true", seed: int = 0
) -> dict[str, Tensor]:
    r"""Diagonal Fisher information of the answers in every trainable weight.

    .. math:: F_i = \frac{1}{B} \sum_b \frac{1}{|A_b|}
              \Big( \partial_i \sum_{a \in A_b} \log \pi(y_a) \Big)^2

    "true": each :math:`y_a` is drawn from the model's own distribution, once, so that products of
    different answers cancel in expectation, and :math:`\tfrac12 \sum_i F_i \delta_i^2` is the
    diagonal part of the second-order expansion of `BehaviourKL`, in nats. "empirical": the labelled
    answers instead, which cancels nothing and is near 0 where the model is sure of them
    (Kunstner et al. 2019, arXiv:1905.12558).

    One backward pass per row; the random state is left alone.

    Args:
        backend: Of the base model.
        batch: Rows with answers; rows without count with 0.
        kind: "true" or "empirical".
        seed: Of the answers that are drawn.

    Returns:
        By the parameters' names, fp32 at least.

    Raises:
        ValueError: If no row has an answer.

    Source:
        Kirkpatrick et al. 2017, arXiv:1612.00796.
    """
    if not len(batch.answer):
        raise ValueError("the probe has no answers that weights could matter to; choose another")
    trained = {n: p for n, p in backend.model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p, dtype=_wide(p)) for n, p in trained.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), probe_mode(backend.model):
        for row in range(len(batch)):
            own = batch.answer_row == row
            if not own.any():
                continue
            positions = batch.answer_position[own].to(backend.device)
            logits = backend.forward(batch.tokens[row : row + 1].to(backend.device), positions)
            assert logits is not None
            log_probs = logits[0].to(_wide(logits)).log_softmax(-1)
            said = batch.answer[own]
            if kind == "true":
                chances = log_probs.detach().exp().cpu()
                said = torch.multinomial(chances, 1, generator=generator)[:, 0]
            score = log_probs.gather(1, said.to(log_probs.device)[:, None]).sum()
            grads = torch.autograd.grad(score, list(trained.values()), allow_unused=True)
            for name, grad in zip(trained, grads, strict=True):
                if grad is not None:
                    total[name] += grad.to(total[name]).square() / len(positions)
    return {name: value / len(batch) for name, value in total.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
