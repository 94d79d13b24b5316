"""Stop a run whose loss is no longer a number, before it costs the last good checkpoint."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor


class FiniteLossModule(LightningModule):
    """A LightningModule that refuses to train on, or to save, anything but finite numbers.

    On the CPU the loss is checked before its backward pass. On CUDA, where reading it at once
    would stall the queue, it is copied beside the computation and read at the next step. Either
    way nothing is saved before the loss and the parameters have been found finite.
    """

    _pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def on_before_backward(self, loss: Float[Tensor, ""]) -> None:
        """Look at the loss as it is minimized: penalties of callbacks included."""
        if loss.device.type != "cuda":
            _check(loss.detach().item(), self.global_step)
            return
        self._check_pending()
        copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
        copy.copy_(loss.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = (self.global_step, copy, event)

    def on_save_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Refuse to save a ruined model."""
        self._check_pending()
        for name, parameter in self.named_parameters():
            if not parameter.detach().isfinite().all():
                raise ValueError(
                    f"the parameter {name} is not finite after step {self.global_step}, so no "
                    "checkpoint was written; resume from the last one with a lower learning rate"
                )

    def on_train_end(self) -> None:
        """Look at the last loss too."""
        self._check_pending()

    def _check_pending(self) -> None:
        if self._pending is not None:
            step, copy, event = self._pending
            self._pending = None
            event.synchronize()
            _check(copy.item(), step)


def _check(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"the training loss is {loss} at step {step}; the last checkpoint is untouched: "
            "resume from it with a lower learning rate, or clip the gradient"
        )
