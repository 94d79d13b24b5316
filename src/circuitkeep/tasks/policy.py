"""What tasks that learn from rewards share: completions, rewards, and what is logged of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from circuitkeep.capture.find import is_bridge
from circuitkeep.functional.policy import equal_groups, token_log_probs
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.rewards import Completions, Reward, WeightedRewards
from circuitkeep.tasks.rollouts import Rollout, Sampling, complete, context_length, pack, pad_left


class PolicyTask(CausalLM):
    """What REINFORCE and GRPO share: completions, rewards, log-probabilities, and what is logged.

    A training step draws `group_size` completions of each prompt of its batch, from torch's global
    random state, in which processes differ: every process samples its own prompts. Dropout is off
    while sampling. Logs the means over processes of ``train/reward``, ``train/reward_std`` (over
    the completions), ``train/completion_tokens`` and ``train/fraction_without_advantage`` (groups
    whose rewards are all equal); and ``val/reward``, of greedy completions, for which nothing is
    drawn.

    Args:
        model: A causal language model of transformers.
        rewards: By name; called with `circuitkeep.tasks.rewards.Completions`.
        reward_weights: By the same names; those not named weigh 1.
        group_size: Completions per prompt.
        sampling: How they are drawn.
        tokenizer: For rewards that read text.
        optimizer: See `CausalLM`.

    Raises:
        ValueError: On construction for settings out of range; when fitting starts, under
            strategies that shard the model, and for prompts that leave no room in the model's
            context.
    """

    def __init__(
        self,
        model: nn.Module,
        rewards: Mapping[str, Reward | None],
        reward_weights: Mapping[str, float] | None,
        group_size: int,
        sampling: Sampling | None,
        tokenizer: Any,
        **optimizer: Any,
    ) -> None:
        super().__init__(model, **optimizer)
        if is_bridge(model) or not hasattr(model, "generate"):
            raise ValueError(
                f"{type(model).__name__} has no `generate` to sample by; train a model of "
                "transformers"
            )
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        self.rewards = WeightedRewards(rewards, reward_weights)
        self.group_size = group_size
        self.sampling = sampling or Sampling()
        self.tokenizer = tokenizer

    def setup(self, stage: str) -> None:
        """Refuse what cannot be sampled, before any time is spent."""
        strategy = self.trainer.strategy
        sharded = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
        if sharded or (isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3):
            raise ValueError(
                f"{type(strategy).__name__} shards the model's weights, and sampling from a "
                "sharded model has not been shown to be right; use DDP (+trainer.strategy=ddp)"
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        for name in ("train_rows", "val_rows"):
            rows = getattr(data, name, None)
            if rows is not None:
                self._check_room(rows.columns["attention_mask"], name)

    def on_fit_start(self) -> None:
        """Give each process its own random numbers: one seed for all would tie their samples."""
        # Not later: `ExactResume` restores each process's own state when training starts.
        if self.global_rank:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * self.global_rank)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the reward of greedy completions."""
        rollout = self._sample(batch, 1, greedy=True)[0]
        self._log_mean("val/reward", rollout.rewards.sum(), torch.tensor(len(rollout.rewards)))

    def rollout(self, batch: Mapping[str, Any]) -> Rollout:
        """Sample, judge and log the completions of a batch of prompts.

        Args:
            batch: ``input_ids`` and ``attention_mask`` (padding on either side), and any other
                columns, which rewards see repeated for each completion.
        """
        rollout, each = self._sample(batch, self.group_size)
        self._log("reward", rollout.rewards.mean(), prog_bar=True)
        for name, values in each.items():
            if len(each) > 1:
                self._log(f"reward/{name}", values.mean())
        self._log("reward_std", rollout.rewards.std(correction=0))
        self._log("completion_tokens", rollout.sampled.sum(1).float().mean())
        if self.group_size > 1:
            equal = equal_groups(rollout.rewards, self.group_size)
            self._log("fraction_without_advantage", equal.float().mean())
        return rollout

    def log_probs(self, rollout: Rollout, model: nn.Module | None = None) -> Tensor:
        """Of every token but the first, in nats, at the sampling temperature: ``row pos-1``."""
        model = self.model if model is None else model
        logits = model(input_ids=rollout.tokens, attention_mask=rollout.attention_mask).logits
        return token_log_probs(logits[:, :-1] / self.sampling.temperature, rollout.tokens[:, 1:])

    @torch.no_grad()
    def _sample(
        self, batch: Mapping[str, Any], copies: int, greedy: bool = False
    ) -> tuple[Rollout, dict[str, Tensor]]:
        self._check_room(batch["attention_mask"], "the batch")
        ids, mask = pad_left(batch["input_ids"], batch["attention_mask"])
        ids, mask = ids.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
        whole, kept = complete(self.model, ids, mask, self.sampling, greedy)
        new = whole[:, ids.shape[1] :]
        columns = {
            name: column.repeat_interleave(copies, 0)
            for name, column in batch.items()
            if name not in ("input_ids", "attention_mask")
        }
        prompts = [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
        rewards, each = self.rewards(Completions(new, kept, prompts, columns, self.tokenizer))
        tokens, attention_mask, sampled = pack(whole, mask, kept)
        return Rollout(tokens, attention_mask, sampled, rewards), each

    def _check_room(self, mask: Int[Tensor, "row pos"], where: str) -> None:
        """Refuse prompts that do not fit, rather than cut them: they would ask something else."""
        context = context_length(self.model)
        lengths = mask.sum(1)
        for too_long, what in (
            (lengths == 0, "is empty"),
            (
                lengths + self.sampling.max_new_tokens > (context or math.inf),
                f"and max_new_tokens={self.sampling.max_new_tokens} exceed the model's context of "
                f"{context}",
            ),
        ):
            if too_long.any():
                row = int(too_long.nonzero()[0])
                raise ValueError(
                    f"the prompt in row {row} of {where} ({int(lengths[row])} tokens) {what}; "
                    f"leave such prompts out ({int(too_long.sum())} of {len(mask)} rows; "
                    "data.max_prompt_tokens does so for text)"
                )

    def _log(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        self.log(f"train/{name}", value.detach(), prog_bar=prog_bar, sync_dist=True, batch_size=1)
