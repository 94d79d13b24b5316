"""`ReferenceKL`: holding the predictions on the training batch."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuitkeep.callbacks.added_loss import add_loss_of_step, remove_loss
from circuitkeep.callbacks.base_weights import KeepsBase, restore
from circuitkeep.callbacks.periodic import log_metrics, steps_taken
from circuitkeep.capture import find_model
from circuitkeep.functional import next_token_kl


class ReferenceKL(KeepsBase):
    r"""Add the divergence of the predictions on the training batch from the base's to the loss.

    .. math:: \frac{\mathrm{weight}}{|P|} \sum_{p \in P} \mathrm{KL}(\pi_p \Vert \rho_p)

    over all positions :math:`P` that the attention mask shows, with :math:`\pi` now and
    :math:`\rho` of a frozen copy of the base, which runs the same inputs: a second model in memory,
    a forward pass without gradient per step. Unit: nats. The direction is that of reinforcement
    learning from feedback. TRL estimates it at the tokens at hand (k3, Schulman 2020), which is
    right for tokens that the model has sampled; those of a data set it has not, so the whole
    vocabulary is summed here.

    The copy answers without dropout. Only the first forward pass of the model in a training step
    counts. Logged as ``rival/reference_kl``, without the weight.

    Args:
        weight: Of the divergence against the task's loss.
        model: Attribute path of the model in the LightningModule, if it holds several.
        reference: Where the base weights are kept, if not under the trainer's root directory.

    Raises:
        ValueError: See `KeepsBase`; and in the first step, if the training step does not run the
            model, or runs it for a part of the logits.

    Source:
        Ziegler et al. 2019, arXiv:1909.08593 (a penalty on KL to the base).
    """

    name = "reference_kl"

    def __init__(
        self,
        weight: float = 0.1,
        model: str | None = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(weight, model, reference)
        # In a list, lest anything take it for a part of the training.
        self._copy: list[nn.Module] = []
        self._passed: tuple[tuple[Any, ...], Mapping[str, Any], Tensor] | None = None
        self._handle: RemovableHandle | None = None
        self._trainer: Trainer | None = None
        self._inside = self._began = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the base, and listen to the model's forward passes."""
        if self.weight == 0:
            return
        model = find_model(pl_module, self.model)
        base = copy.deepcopy(model).eval().requires_grad_(False)
        restore(base, self.base(trainer, pl_module))
        self._copy, self._trainer = [base], trainer
        self._handle = model.register_forward_hook(self._seen, with_kwargs=True)
        add_loss_of_step(pl_module, self._loss)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here on the training step runs the model."""
        self._passed, self._inside = None, True

    def _seen(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        # A probe's pass is made with dropout off, and is none of the training step's.
        if self._inside and self._passed is None and model.training:
            self._passed = args, kwargs, output.logits

    def _loss(self) -> Tensor | None:
        if self._passed is None and self._began:  # a batch that is skipped
            return None
        if self._passed is None:
            raise ValueError(
                "ReferenceKL: the training step did not run the model in training mode; name the "
                "one it runs by model='...'"
            )
        (args, kwargs, now), self._passed, self._inside = self._passed, None, False
        self._began = True
        without_labels = {name: value for name, value in kwargs.items() if name != "labels"}
        with torch.no_grad():
            before = self._copy[0](*args, **without_labels).logits
        mask = _real(kwargs.get("attention_mask"), now)
        log_probs = (_log_probs(value[mask]) for value in (now, before))
        kl = next_token_kl(*log_probs).sum() / mask.sum().clamp(min=1)
        trainer = self._trainer
        assert trainer is not None
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = steps_taken(trainer)
        if step % max(every, 1) == 0:
            log_metrics(trainer, {"rival/reference_kl": float(kl.detach())}, step)
        return self.weight * kl

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _release(self, module: LightningModule) -> None:
        remove_loss(module, self._loss)
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._trainer = self._passed = None
        self._copy, self._inside, self._began = [], False, False


def _real(mask: Tensor | None, logits: Tensor) -> Bool[Tensor, "row pos"]:
    if mask is None:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if mask.shape != logits.shape[:2]:
        raise ValueError(
            f"ReferenceKL: the attention mask is {tuple(mask.shape)} and the logits are "
            f"{tuple(logits.shape)}; run the model with a plain mask and for all positions"
        )
    return mask.bool()


def _log_probs(
    logits: Float[Tensor, "answer vocab"],
) -> Float[Tensor, "answer vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
