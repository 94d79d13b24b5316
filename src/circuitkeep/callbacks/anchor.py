"""`L2SP` and `EWC`: pulling all weights back to where they began."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from circuitkeep.callbacks.base_weights import KeepsBase
from circuitkeep.callbacks.fisher import FISHERS, diagonal_fisher
from circuitkeep.callbacks.periodic import log_metrics, steps_taken
from circuitkeep.capture import attach, find_model
from circuitkeep.circuits import Circuit, did_you_mean
from circuitkeep.guard.subject import as_circuit, as_probe, tokenizer_of
from circuitkeep.probes import Probe
from circuitkeep.probing import probe_rows


class L2SP(KeepsBase):
    r"""Add half the squared distance of all weights from those at the start to the loss.

    .. math:: \frac{\mathrm{weight}}{2} \sum_i (\theta_i - \theta^0_i)^2

    Its gradient is known, so it is added to the gradients themselves, before they are clipped and
    used: once per optimizer step however many batches are accumulated, after processes have
    averaged theirs and a scaler has taken its factor out, under automatic and manual optimization
    alike. No graph is built and no pass is run. The loss that the training logs is without it;
    its own value, without the weight, is logged as ``rival/l2sp``.

    All trainable weights count. The paper's rule leaves weight decay out, which pulls to 0 instead;
    here both are as they are set. A weight that the step gave no gradient to is left alone.

    Args:
        weight: Of the distance against the task's loss.
        model: Attribute path of the model in the LightningModule, if it holds several.
        reference: Where the base weights are kept, if not under the trainer's root directory.

    Raises:
        ValueError: See `KeepsBase`; and for a fused optimizer under fp16 mixed precision, which
            takes the scaler's factor out by itself, too late for what is added.

    Source:
        Li et al. 2018, arXiv:1802.01483, without the second term: no weight is new here.
    """

    name = "l2sp"

    def __init__(
        self,
        weight: float = 0.1,
        model: str | None = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(weight, model, reference)
        self._held: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights as they are, or read what the resumed run began with."""
        if self.weight == 0:
            return
        for optimizer in trainer.optimizers:
            fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            if fused and getattr(trainer.precision_plugin, "scaler", None) is not None:
                raise ValueError(
                    f"{type(self).__name__}: a fused optimizer unscales gradients inside its step, "
                    "too late for what is added here; use fused=False, or precision='bf16-mixed'"
                )
        found = self.base(trainer, pl_module)
        self._held = {
            parameter: (found[f"base.{name}"], found.get(f"fisher.{name}"))
            for name, parameter in find_model(pl_module, self.model).named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient, to the weights that this optimizer steps."""
        step = steps_taken(trainer)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logged = step % max(every, 1) == 0
        distance = 0.0
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter not in self._held or parameter.grad is None:
                continue
            base, fisher = self._held[parameter]
            moved = parameter - base
            pull = moved if fisher is None else moved * fisher
            if logged:
                distance = distance + (moved * pull).sum(dtype=torch.float32)
            parameter.grad.add_(pull.to(parameter.grad), alpha=self.weight)
        if logged:
            log_metrics(trainer, {f"rival/{self.name}": float(distance) / 2}, step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the copies go."""
        self._held = {}


class EWC(L2SP):
    r"""The same, each weight as firmly as the probe's answers depend on it.

    .. math:: \frac{\mathrm{weight}}{2} \sum_i F_i (\theta_i - \theta^0_i)^2

    with the diagonal Fisher information :math:`F` of the base model on train-probe rows, measured
    once at the start and kept with the weights: see `circuitkeep.callbacks.fisher`. With
    ``weight=1`` it is a diagonal approximation of `BehaviourKL`, in nats, for small moves; the
    paper's weights are far above 1, as small moves are not what training makes.

    Args:
        circuit: A circuit file, or a `Circuit`: its probe gives the rows.
        weight: Of the distance against the task's loss.
        probe: Rows to measure on, if not those of the circuit's own probe.
        fisher: "true" (answers drawn from the model) or "empirical" (the labelled answers).
        rows: Train-probe rows; one backward pass each, once.
        seed: Of the rows and of the answers that are drawn.
        model: Attribute path of the model in the LightningModule, if it holds several.
        tokenizer: A tokenizer, or where to load one; default: the model's own directory.
        reference: Where base weights and Fisher are kept, if not under the trainer's root.

    Raises:
        ValueError: See `L2SP`; and for an unknown `fisher`, or a circuit or probe that does not
            fit the model.

    Source:
        Kirkpatrick et al. 2017, arXiv:1612.00796.
    """

    name = "ewc"

    def __init__(
        self,
        circuit: str | os.PathLike[str] | Circuit,
        weight: float = 100.0,
        probe: Probe | Mapping[str, Any] | None = None,
        fisher: str = "true",
        rows: int = 256,
        seed: int = 0,
        model: str | None = None,
        tokenizer: Any = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(weight, model, reference)
        if fisher not in FISHERS:
            raise ValueError(f"unknown fisher {fisher!r}" + did_you_mean(fisher, FISHERS))
        if rows < 1:
            raise ValueError(f"EWC: rows must be at least 1, got {rows}")
        self.circuit = as_circuit(circuit)
        self.probe = as_probe(probe)
        self.fisher, self.rows, self.seed = fisher, rows, seed
        self.tokenizer = tokenizer

    def more(self, trainer: Trainer, model: nn.Module) -> dict[str, Tensor]:
        """The Fisher information, as ``fisher.NAME``."""
        backend = attach(model)
        tokenizer = tokenizer_of(backend, self.tokenizer)
        pool = self.rows, self.seed
        batch = probe_rows(self.circuit, backend, tokenizer, "train", *pool, self.probe)
        found = diagonal_fisher(backend, batch, self.fisher, self.seed)
        return {f"fisher.{name}": value for name, value in found.items()}
