"""Next-token training of any causal language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from circuitkeep.circuits import did_you_mean
from circuitkeep.evals.capability import answer_hits, next_token_nats
from circuitkeep.tasks.finite import FiniteLossModule

SCHEDULES = ("constant", "linear", "cosine")


class CausalLM(FiniteLossModule):
    """Trains `model` on batches of ``input_ids``, ``attention_mask`` and ``labels``.

    Logs ``train/loss_nats``, ``val/loss_nats`` and, where the data mark ``answers``,
    ``val/accuracy``. The loss is the mean cross-entropy in nats over labels other than -100.

    Args:
        model: Called as ``model(input_ids=, attention_mask=)``, returns an object with
            ``.logits``.
        lr: Peak learning rate of AdamW.
        weight_decay: Of matrices; norms, biases and other vectors are never decayed.
        betas: Of AdamW.
        warmup_steps: Optimizer steps over which the learning rate rises linearly to `lr`.
        schedule: What it does after that: stay, or fall to 0 along a line or a half cosine.
        total_steps: Optimizer steps at which it arrives at 0; None takes the trainer's.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.999),
        warmup_steps: int = 0,
        schedule: str = "constant",
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}" + did_you_mean(schedule, SCHEDULES))
        # `from_pretrained` returns a model in evaluation mode: dropout would stay off, silently.
        self.model = model.train()
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.total_steps = total_steps

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """Mean next-token loss of the batch, in nats."""
        nats, tokens = next_token_nats(self._logits(batch), batch["labels"])
        # A packed block of nothing but prompts has no label: no loss then, rather than 0 / 0.
        loss = nats / tokens.clamp(min=1)
        self.log("train/loss_nats", loss.detach(), prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log loss and accuracy; Lightning averages them with the weights given here."""
        logits = self._logits(batch)
        nats, tokens = next_token_nats(logits, batch["labels"])
        self._log_mean("val/loss_nats", nats, tokens)
        if "answers" in batch:
            hits, asked = answer_hits(logits, batch["labels"], batch["answers"])
            self._log_mean("val/accuracy", hits, asked)

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule of the arguments, advanced every optimizer step."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
        )
        total = self.total_steps
        if total is None and self.schedule != "constant":
            steps = self.trainer.estimated_stepping_batches
            if math.isinf(steps):
                raise ValueError(
                    f"the {self.schedule!r} schedule needs an end, and this run has none; set "
                    "max_steps or max_epochs of the trainer, or total_steps of the task"
                )
            total = int(steps)

        def factor(step: int) -> float:
            return learning_rate_factor(step, self.schedule, self.warmup_steps, total)

        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _logits(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch pos vocab"]:
        return self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits

    def _log_mean(self, name: str, total: Tensor, count: Tensor) -> None:
        n = int(count)
        if n:
            self.log(name, total.float() / n, batch_size=n, sync_dist=True, prog_bar=True)


def learning_rate_factor(
    step: int, schedule: str, warmup_steps: int, total_steps: int | None
) -> float:
    """By what to multiply the peak learning rate at optimizer step `step`, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    assert total_steps is not None
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
