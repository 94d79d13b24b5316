"""Sampling completions from the model in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_new_tokens: A completion ends with EOS, or here.
        temperature: Divides the logits, also where log-probabilities are computed: what is
            trained is the policy that was sampled.
        top_k: Only the likeliest so many tokens; 0 for all.
        top_p: Only the likeliest tokens with this probability together; 1 for all. As in TRL, the
            log-probabilities that are trained do not know of `top_k` and `top_p`.
        pad_token_id: Fills up shorter rows; None takes the model's, or any: it is masked.
    """

    max_new_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be above 0, got {self.temperature}: completions that are all "
                "the same have no advantage"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k must be 0 or more and top_p in (0, 1], got {self.top_k} and {self.top_p}"
            )


@dataclass(frozen=True)
class Rollout:
    """Prompts with their completions, ready for a training pass.

    Attributes:
        tokens: Prompt, completion, padding on the right.
        attention_mask: 1 at prompt and completion.
        sampled: True at the completion, its EOS included.
        rewards: One per row.
        old_log_probs: Of each token but the first, under the model that sampled it; None until
            the first update has computed them.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    sampled: Bool[Tensor, "row pos"]
    rewards: Float[Tensor, " row"]
    old_log_probs: Float[Tensor, "row pos-1"] | None = None


def complete(
    model: nn.Module,
    ids: Int[Tensor, "row prompt"],
    mask: Int[Tensor, "row prompt"],
    sampling: Sampling,
    greedy: bool = False,
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row new"]]:
    """Complete prompts by the model's own `generate`, with dropout off.

    Args:
        model: A causal language model of transformers.
        ids: Prompts with their padding on the left.
        mask: 1 at their tokens.
        sampling: How tokens are drawn, from torch's global random state.
        greedy: Take the likeliest tokens instead; nothing is drawn.

    Returns:
        Prompts and what was generated, and which of the latter belong to the completions.
    """
    ends = _end_tokens(model)
    how: dict[str, Any] = {"do_sample": False}
    if not greedy:
        how = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    with evaluating(model):
        whole = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=_pad_token(model, sampling.pad_token_id, ends),
            use_cache=True,
            **how,
        )
    return whole, until_end(whole[:, ids.shape[1] :], ends)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and activations kept for the next token; every flag is put back.

    Unlike `circuitkeep.capture.probe_mode` it lets the random state go on.
    """
    flags = [module for module in model.modules() if module.training]
    for module in flags:
        module.training = False
    try:
        yield
    finally:
        for module in flags:
            module.training = True


def pad_left(
    tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]
) -> tuple[Int[Tensor, "row width"], Int[Tensor, "row width"]]:
    """Rows that end together, as `generate` wants them, whichever side their padding was on.

    Returns:
        Tokens and mask, no wider than the longest row.
    """
    # Stable: the tokens keep their order behind the padding.
    order = mask.argsort(dim=1, stable=True)
    width = int(mask.sum(1).max())
    return tokens.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:]


def until_end(tokens: Int[Tensor, "row new"], ends: Sequence[int]) -> Bool[Tensor, "row new"]:
    """True up to the first end token and at it; everywhere where there is none.

    An empty completion is its end token alone: that it ended there is what it is rewarded for.
    """
    if not ends:
        return torch.ones_like(tokens, dtype=torch.bool)
    end = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device)).int()
    return end.cumsum(1) - end == 0


def pack(
    whole: Int[Tensor, "row pos"],
    prompt_mask: Int[Tensor, "row prompt"],
    kept: Bool[Tensor, "row new"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Padding to the right of each row, where neither attention nor positions see it."""
    sampled = torch.cat([torch.zeros_like(prompt_mask, dtype=torch.bool), kept], 1)
    mask = torch.cat([prompt_mask, kept.to(prompt_mask.dtype)], 1)
    order = mask.argsort(dim=1, descending=True, stable=True)
    width = int(mask.sum(1).max())
    tokens, mask, sampled = (part.gather(1, order)[:, :width] for part in (whole, mask, sampled))
    return tokens, mask, sampled


def context_length(model: Any) -> int | None:
    """How many positions a model has; None if it does not say."""
    config = getattr(model, "config", None)
    return config and getattr(config.get_text_config(), "max_position_embeddings", None)


def _end_tokens(model: Any) -> list[int]:
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if end is None else list(end) if isinstance(end, list) else [end]


def _pad_token(model: Any, chosen: int | None, ends: Sequence[int]) -> int:
    own = getattr(getattr(model, "generation_config", None), "pad_token_id", None)
    return next((token for token in (chosen, own, *ends) if token is not None), 0)
