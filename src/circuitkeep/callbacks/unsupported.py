"""What cannot be trained right with a penalty is refused before the first step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from torch.distributed.fsdp import FullyShardedDataParallel


def refuse_unsupported(trainer: Any, module: LightningModule) -> None:
    """Refuse settings of the trainer that fail, with or without a penalty, and say whose they are.

    Raises:
        ValueError: Naming the setting and the remedy.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        raise _refusal(
            "DeepSpeed's ZeRO stage 3 has not been shown to be right with a penalty; use stage 2, "
            "or ModelParallelStrategy (FSDP 2), which shards as much"
        )
    static = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("static_graph")
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in _callbacks(trainer))
    if static and (trainer.accumulate_grad_batches > 1 or scheduled):
        raise _refusal(
            "DDPStrategy(static_graph=True) with accumulate_grad_batches > 1 fails inside torch, "
            "without any callback too (pytorch #143580); leave static_graph away"
        )
    fully_sharded = isinstance(strategy, FSDPStrategy)
    by_norm = str(getattr(trainer.gradient_clip_algorithm, "value", None) or "norm") == "norm"
    if fully_sharded and trainer.gradient_clip_val and by_norm:
        raise _refusal(
            "FSDPStrategy cannot clip gradients by their norm, without any callback too (a limit "
            "of Lightning); use gradient_clip_algorithm='value', or ModelParallelStrategy (FSDP 2)"
        )
    if fully_sharded and not module.automatic_optimization:
        raise _refusal(
            "FSDPStrategy cannot run manual_backward inside training_step, without any callback "
            "too (torch's FSDP 1 forbids a backward inside its forward pass); use automatic "
            "optimization, or ModelParallelStrategy (FSDP 2)"
        )
    sharded = fully_sharded or isinstance(strategy, ModelParallelStrategy)
    if sharded and any(isinstance(c, WeightAveraging) for c in _callbacks(trainer)):
        name = "FSDPStrategy" if fully_sharded else "ModelParallelStrategy"
        raise _refusal(
            f"Lightning's WeightAveraging copies whole weights, which {name} "
            "does not hold, without any penalty too; use DDP, or average saved checkpoints"
        )


def refuse_wrapping(module: LightningModule, model: Any) -> None:
    """Refuse a language model that FSDP 1 has wrapped by itself.

    Raises:
        ValueError: Naming the setting and the remedy.
    """
    for wrapper in module.modules():
        if isinstance(wrapper, FullyShardedDataParallel) and wrapper.module is model:
            raise _refusal(
                f"FSDP wraps {type(model).__name__} by itself, so that it cannot be run but "
                "through its wrapper; wrap its layers (auto_wrap_policy={LAYER_CLASS}), or leave "
                "the policy away"
            )


def _callbacks(trainer: Any) -> list[Any]:
    return trainer.callbacks


def _refusal(message: str) -> ValueError:
    return ValueError(f"CircuitPreservation: {message}")
