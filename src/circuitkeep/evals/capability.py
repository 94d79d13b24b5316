"""What the fine-tuning is for, and what it must not cost: loss and accuracy on ordinary data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitkeep.capture import probe_mode

IGNORED = -100
"""The label of a position that has no loss (Hugging Face's convention)."""


def next_token_nats(
    logits: Float[Tensor, "batch pos vocab"],
    labels: Int[Tensor, "batch pos"],
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of the next-token cross-entropies, and how many tokens it runs over.

    Args:
        logits: At position ``i``, the scores of token ``i + 1``.
        labels: Aligned with the *input*: the token itself, or -100 where it has no loss. The
            shift by one happens here; the first label of a row is never predicted.

    Returns:
        The sum in nats, computed in float32 or better, and the count of predicted tokens. Both
        are 0 if there is none; the sum is differentiable in ``logits`` either way.
    """
    predicted = logits[:, :-1].flatten(0, 1)
    if predicted.dtype in (torch.float16, torch.bfloat16):
        predicted = predicted.float()
    wanted = labels[:, 1:].flatten()
    nats = F.cross_entropy(predicted, wanted, ignore_index=IGNORED, reduction="sum")
    return nats, (wanted != IGNORED).sum()


def answer_hits(
    logits: Float[Tensor, "batch pos vocab"],
    labels: Int[Tensor, "batch pos"],
    answers: Bool[Tensor, "batch pos"],
) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """How many marked tokens are the model's first choice, and how many are marked.

    Args:
        logits: At position ``i``, the scores of token ``i + 1``.
        labels: Aligned with the input, as in `next_token_nats`.
        answers: True at the labels that count as answers.
    """
    wanted = labels[:, 1:]
    asked = answers[:, 1:] & (wanted != IGNORED)
    return ((logits[:, :-1].argmax(-1) == wanted) & asked).sum(), asked.sum()


def evaluate_capability(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Loss of a causal language model over all labelled tokens of `batches`.

    Every token weighs the same, whatever batch it stands in. Training flags and the random
    state of torch are left as they were found; no gradient is kept.

    Args:
        model: Called as ``model(input_ids=, attention_mask=)``, returns an object with
            ``.logits``.
        batches: Each with ``input_ids``, ``attention_mask``, ``labels`` and, where the data mark
            answers, the boolean ``answers`` aligned with ``labels``.

    Returns:
        ``loss_nats`` and ``perplexity`` per token, ``tokens``, and ``accuracy`` over the marked
        answers if there are any.

    Raises:
        ValueError: If no token of `batches` has a label.
    """
    return summarize_capability(capability_sums(model, batches))


def capability_sums(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Float[Tensor, " 4"]:
    """Nats, tokens, correct answers and answers over `batches`, in float64 on the model's device.

    Sums rather than means, so that several processes can add theirs before
    `summarize_capability` divides.
    """
    device = next(model.parameters()).device
    # MPS has no float64; the sums wait on the CPU there.
    home = device if device.type != "mps" else torch.device("cpu")
    sums = torch.zeros(4, dtype=torch.float64, device=home)
    # A loader without a generator of its own draws from the global one: iterate inside too.
    with probe_mode(model), torch.no_grad():
        for batch in batches:
            labels = batch["labels"].to(device)
            logits = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            ).logits
            parts = [*next_token_nats(logits, labels)]
            if "answers" in batch:
                parts += answer_hits(logits, labels, batch["answers"].to(device))
            sums[: len(parts)] += torch.stack([part.to(home, torch.float64) for part in parts])
    return sums


def summarize_capability(sums: Float[Tensor, " 4"]) -> dict[str, float]:
    """The means that `evaluate_capability` returns, from the sums of `capability_sums`.

    Raises:
        ValueError: If the sums count no token.
    """
    nats, tokens, hits, asked = sums.tolist()
    if not tokens:
        raise ValueError(
            "no token of the evaluation data has a label, so there is no loss to report; "
            f"labels other than {IGNORED} are needed after the first position"
        )
    loss_nats = nats / tokens
    # exp overflows a float beyond 709 nats; such a perplexity is infinite for every purpose.
    perplexity = math.exp(loss_nats) if loss_nats < 700 else math.inf
    values = {"loss_nats": loss_nats, "perplexity": perplexity, "tokens": tokens}
    if asked:
        values["accuracy"] = hits / asked
    return values
