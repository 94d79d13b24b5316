"""REINFORCE on sampled completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from circuitkeep.circuits import did_you_mean
from circuitkeep.functional.policy import leave_one_out_advantages, reinforce_loss
from circuitkeep.tasks.policy import PolicyTask
from circuitkeep.tasks.rewards import Reward
from circuitkeep.tasks.rollouts import Sampling

BASELINES = ("group", "batch", "none")


class Reinforce(PolicyTask):
    """The policy gradient with a leave-one-out baseline; see `PolicyTask` for what is logged.

    Every training step samples anew, so that the gradient is that of the expected reward. Where
    all rewards are equal, zero or not, it is 0 (with ``baseline="none"`` for rewards of 0 only).

    Args:
        model: A causal language model of transformers.
        rewards: By name; see `circuitkeep.tasks.rewards`.
        reward_weights: By the same names; those not named weigh 1.
        baseline: What a reward is compared with: the mean of the others of its prompt (RLOO), of
            the others in the process's batch, or nothing.
        group_size: Completions per prompt.
        sampling: How they are drawn.
        tokenizer: For rewards that read text.
        lr: See `CausalLM`, as for all that follow.
        weight_decay: Of matrices.
        betas: Of AdamW.
        warmup_steps: Of the learning rate.
        schedule: Of the learning rate.
        total_steps: Of the schedule.

    Source:
        Williams 1992; Ahmadian et al. 2024, arXiv:2402.14740, for the baseline.
    """

    def __init__(
        self,
        model: nn.Module,
        rewards: Mapping[str, Reward | None],
        reward_weights: Mapping[str, float] | None = None,
        baseline: str = "group",
        group_size: int = 8,
        sampling: Sampling | None = None,
        tokenizer: Any = None,
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
        if baseline not in BASELINES:
            raise ValueError(f"unknown baseline {baseline!r}" + did_you_mean(baseline, BASELINES))
        if baseline == "group" and group_size == 1:
            raise ValueError(
                "group_size=1 leaves nothing to compare with; raise it, or use baseline='batch'"
            )
        self.baseline = baseline

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """A loss whose gradient is the policy gradient; its value means nothing."""
        rollout = self.rollout(batch)
        advantages = rollout.rewards
        if self.baseline != "none":
            size = self.group_size if self.baseline == "group" else len(advantages)
            advantages = leave_one_out_advantages(advantages, size)
        return reinforce_loss(self.log_probs(rollout), rollout.sampled[:, 1:], advantages)
