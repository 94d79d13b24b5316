"""Group relative policy optimization on sampled completions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from circuitkeep.circuits import did_you_mean
from circuitkeep.functional.policy import (
    clipped_surrogate,
    group_advantages,
    mean_over_completions,
    sampled_kl,
)
from circuitkeep.tasks.policy import PolicyTask
from circuitkeep.tasks.rewards import Reward
from circuitkeep.tasks.rollouts import Rollout, Sampling

LOSSES = ("grpo", "dr_grpo")
KEY = "circuitkeep.GRPO"


class GRPO(PolicyTask):
    """Completions against the others of their prompt, with a clipped ratio and optionally a KL.

    A group whose rewards are all equal, zero or not, has no advantage and no gradient but the
    KL's. Logs ``train/clip_fraction`` (of the completions' tokens) and, where `kl_weight` is not
    0, ``train/kl_nats`` per token, beside what `PolicyTask` logs.

    Args:
        model: A causal language model of transformers.
        rewards: By name; see `circuitkeep.tasks.rewards`.
        reward_weights: By the same names; those not named weigh 1.
        group_size: Completions per prompt, at least 2.
        sampling: How they are drawn.
        tokenizer: For rewards that read text.
        clip: How far the ratio to the sampling policy may leave 1.
        kl_weight: Of the KL to the reference, the model as it was given: a frozen copy of it is
            kept in memory, unless the weight is 0.
        updates_per_rollout: Training steps on the same completions; the batches of prompts in
            between are passed over. 1 never clips.
        loss: ``grpo`` averages over each completion's own tokens; ``dr_grpo`` divides by
            ``max_new_tokens``, so that long completions are not favoured when they are wrong.
        scale_rewards: Divide advantages by the standard deviation of their group.
        lr: See `CausalLM`, as for all that follow.
        weight_decay: Of matrices.
        betas: Of AdamW.
        warmup_steps: Of the learning rate.
        schedule: Of the learning rate.
        total_steps: Of the schedule.

    Source:
        Shao et al. 2024, arXiv:2402.03300; Liu et al. 2025, arXiv:2503.20783, for ``dr_grpo``.
    """

    def __init__(
        self,
        model: nn.Module,
        rewards: Mapping[str, Reward | None],
        reward_weights: Mapping[str, float] | None = None,
        group_size: int = 8,
        sampling: Sampling | None = None,
        tokenizer: Any = None,
        clip: float = 0.2,
        kl_weight: float = 0.0,
        updates_per_rollout: int = 1,
        loss: str = "grpo",
        scale_rewards: bool = True,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: Sequence[float] = (0.9, 0.999),
        warmup_steps: int = 0,
        schedule: str = "constant",
        total_steps: int | None = None,
    ) -> None:
        super().__init__(
            model,
            rewards,
            reward_weights,
            group_size,
            sampling,
            tokenizer,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            warmup_steps=warmup_steps,
            schedule=schedule,
            total_steps=total_steps,
        )
        if group_size < 2:
            raise ValueError(
                f"group_size={group_size}: GRPO compares completions of one prompt; use at least "
                "2, or REINFORCE with baseline='batch' (task=reinforce)"
            )
        if not 0 < clip < 1:
            raise ValueError(f"clip must be between 0 and 1, got {clip}")
        if kl_weight < 0:
            raise ValueError(f"kl_weight must be 0 or more, got {kl_weight}")
        if updates_per_rollout < 1:
            raise ValueError(f"updates_per_rollout must be at least 1, got {updates_per_rollout}")
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}" + did_you_mean(loss, LOSSES))
        self.clip = clip
        self.kl_weight = kl_weight
        self.updates_per_rollout = updates_per_rollout
        self.loss = loss
        self.scale_rewards = scale_rewards
        # In a list, lest it become a submodule: neither trained, nor saved, nor guarded.
        self._reference: list[nn.Module] = []
        if kl_weight:
            self._reference.append(copy.deepcopy(model).eval().requires_grad_(False))
        self._rollout: Rollout | None = None
        self._updates = 0

    def setup(self, stage: str) -> None:
        """Refuse what cannot be sampled, or not be reused."""
        super().setup(stage)
        accumulate = self.trainer.accumulate_grad_batches
        if self.updates_per_rollout > 1 and accumulate > 1:
            raise ValueError(
                f"updates_per_rollout={self.updates_per_rollout} and accumulate_grad_batches="
                f"{accumulate} do not go together: a rollout is that of one batch; raise "
                "data.batch_size instead of accumulating, or set updates_per_rollout=1"
            )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """The loss of one update, in the unit of the advantages."""
        rollout = self._rollout
        if rollout is None or self._updates >= self.updates_per_rollout:
            rollout, self._updates = self.rollout(batch), 0
        now = self.log_probs(rollout)
        if rollout.old_log_probs is None:
            rollout = replace(rollout, old_log_probs=now.detach())
        self._rollout, self._updates = rollout, self._updates + 1
        assert rollout.old_log_probs is not None
        mask = rollout.sampled[:, 1:]
        length = self.sampling.max_new_tokens if self.loss == "dr_grpo" else None
        advantages = group_advantages(rollout.rewards, self.group_size, self.scale_rewards)
        surrogate, clipped = clipped_surrogate(now, rollout.old_log_probs, advantages, self.clip)
        self._log("clip_fraction", (clipped & mask).sum() / mask.sum())
        loss = mean_over_completions(surrogate, mask, length)
        if self._reference:
            kl = sampled_kl(now, self._reference_log_probs(rollout))
            loss = loss + self.kl_weight * mean_over_completions(kl, mask, length)
            self._log("kl_nats", mean_over_completions(kl, mask))
        return loss

    def on_save_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Add what every process has sampled and not yet used up; the first one writes."""
        super().on_save_checkpoint(checkpoint)
        if self.updates_per_rollout == 1:
            return
        own = None
        if self._rollout is not None:
            tensors = {name: tensor.cpu() for name, tensor in vars(self._rollout).items()}
            own = {"rollout": tensors, "updates": self._updates}
        states = [own]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(states, own)
        checkpoint[KEY] = {"ranks": states}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the completions that the checkpoint holds, if as many processes resume."""
        saved = checkpoint.get(KEY)
        if saved is None:
            return
        if len(saved["ranks"]) != self.trainer.world_size:
            rank_zero_warn(
                f"the checkpoint holds the completions of {len(saved['ranks'])} processes and is "
                f"resumed by {self.trainer.world_size}: new ones are sampled"
            )
            return
        own = saved["ranks"][self.global_rank]
        if own is not None:
            self._rollout = Rollout(**{k: v.to(self.device) for k, v in own["rollout"].items()})
            self._updates = own["updates"]

    @torch.no_grad()
    def _reference_log_probs(self, rollout: Rollout) -> Tensor:
        # Where and how the trainer has put the model is not known before.
        parameter = next(self.model.parameters())
        reference = self._reference[0].to(parameter.device, parameter.dtype)
        return self.log_probs(rollout, reference)
