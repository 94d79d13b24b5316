"""`CircuitPreservation`: adds the penalty for a drifting circuit to the training loss."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from circuitkeep.callbacks.added_loss import Due, add_loss, remove_loss
from circuitkeep.callbacks.base_reference import base_reference
from circuitkeep.callbacks.budget import pace_of
from circuitkeep.callbacks.constraint import Constraint, Multiplier, as_constraint
from circuitkeep.callbacks.penalty_checks import check_finite, check_reach, log_penalty
from circuitkeep.callbacks.periodic import steps_taken
from circuitkeep.callbacks.processes import over_processes, part_of
from circuitkeep.callbacks.schedule import Schedule, check_settings, end_of
from circuitkeep.callbacks.subject import as_circuit, as_probe
from circuitkeep.callbacks.unsupported import (
    refuse_backend,
    refuse_model,
    refuse_unsupported,
    refuse_wrapping,
)
from circuitkeep.capture import Backend, attach, find_model
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.capture.reach import Reach
from circuitkeep.circuits import Circuit
from circuitkeep.penalties import Activations, BehaviourKL, PatternDivergence, Penalty, Sum
from circuitkeep.probes import Probe, build_probe
from circuitkeep.reference import Question, Reference


class CircuitPreservation(Callback):
    r"""Add a circuit-preservation penalty to the loss of an unmodified LightningModule.

    At the first training step the model as it is then, the base, is run once over a pool of
    train-probe rows (the reference); a resumed fit goes on with the reference it began with.
    Then, on due steps, a fresh random subset of the rows is run through the model in training,
    and

    .. math:: \mathrm{weight} \cdot \min(1, t / \mathrm{warmup}) \cdot P(\mathrm{now},
              \mathrm{reference})

    is added to the loss. With ``weight=0`` nothing is run at all: the training is bit-identical
    to one without the callback. The random state is never touched. Callbacks for several circuits
    share the forward pass of their rows. Processes share the rows out, and the gradient is that of
    one process, under every strategy of ``docs/strategies.md``.

    Under manual optimization the penalty joins the first ``manual_backward`` of each training
    step; the model's gradients must not be zeroed between that and the step of its optimizer.

    Args:
        circuit: A circuit file, or a `Circuit`.
        penalty: What drift costs; default ``PatternDivergence + BehaviourKL``, because patterns
            alone keep the picture and lose the function.
        probe: Rows to guard on, if not those of the circuit's own probe; it must label the same
            roles. A probe, or a mapping with ``_target_``.
        weight: Of the penalty against the task's loss, which is in nats.
        warmup_steps: Optimizer steps over which the weight rises linearly from 0.
        decay: How it falls to 0 until the end of the training: "linear" or "cosine".
        constraint: What to keep at least, instead of a fixed weight: 0.95, or a `Constraint`; the
            weight is then the one to begin with.
        every_n_steps: Due every so many optimizer steps, with the penalty multiplied by as much.
        rows_per_step: Probe rows per due step, over all ranks; with a budget, the most.
        budget: The most time that the penalty may add, as a share of the time without it (0.03);
            the interval and the rows are then chosen by it: see `WithinBudget`.
        pool_rows: Rows in the pool; few rows overfit (8 do, 64 hardly).
        seed: Of the pool and of the choice of rows.
        model: Attribute path of the model in the LightningModule, if it holds several.
        tokenizer: A tokenizer, or where to load one; default: the model's own directory.
        reference: Where the reference is kept, if not under the trainer's root directory. A file
            that is there is used, if it was made of the same model, tokenizer, probe and circuit.

    Raises:
        ValueError: On construction for settings out of range or an unreadable circuit; at the
            start of training for a circuit that does not fit the model, or settings of the trainer
            under which the gradient cannot be right; in the first step, if the penalty does not
            reach the model's parameters; later, if it is not finite.
    """

    def __init__(
        self,
        circuit: str | os.PathLike[str] | Circuit,
        penalty: Penalty | None = None,
        probe: Probe | Mapping[str, Any] | None = None,
        weight: float = 1.0,
        warmup_steps: int = 0,
        decay: str | None = None,
        constraint: float | Constraint | None = None,
        every_n_steps: int = 1,
        rows_per_step: int = 2,
        budget: float | None = None,
        pool_rows: int = 512,
        seed: int = 0,
        model: str | None = None,
        tokenizer: Any = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        self.circuit = as_circuit(circuit)
        if penalty is None:
            penalty = Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()})
        self.penalty = penalty if isinstance(penalty, Sum) else Sum({"drift": penalty})
        self.probe = as_probe(probe)
        check_settings(
            weight=weight,
            warmup_steps=warmup_steps,
            every_n_steps=every_n_steps,
            rows_per_step=rows_per_step,
            pool_rows=pool_rows,
            budget=budget,
            decay=decay,
            constrained=constraint is not None,
        )
        self.constraint = as_constraint(constraint, self.penalty.needs)
        self.weight = float(weight)
        self.warmup_steps, self.decay = warmup_steps, decay
        self.every_n_steps = every_n_steps
        self.rows_per_step = rows_per_step
        self.budget = budget
        self.pool_rows = pool_rows
        self.seed = seed
        self.model = model
        self.tokenizer = tokenizer
        self.reference_path = None if reference is None else Path(reference)
        self._kept = ""  # where the reference in use lies
        self._resumed = False
        self._model_print = ""
        self._schedule: Schedule | None = None
        self._multiplier: Multiplier | None = None
        self._chosen: dict[str, Any] = {}  # by the run that is resumed
        self._served: int | None = None  # the optimizer step that had its penalty
        self._reached = False
        self._backend: Backend | None = None
        self._reference: Reference | None = None
        self._trainer: Trainer | None = None
        self._module: LightningModule | None = None

    @property
    def state_key(self) -> str:
        """One state per circuit, so that several callbacks keep apart."""
        return f"CircuitPreservation/{self.circuit.name}"

    def state_dict(self) -> dict[str, Any]:
        """Where the reference lies: a resumed run must not take the trained model for the base.

        And what budget and constraint have come to: a resumed run goes on with that.
        """
        chosen = self._chosen
        if self._schedule is not None:
            weight = None if self._multiplier is None else self._multiplier.state
            chosen = {"budget": self._schedule.pace.state, "constraint": weight}
        return {"reference": self._kept, **{key: x for key, x in chosen.items() if x is not None}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the reference of the run that was stopped, unless another path is given."""
        self._kept = state_dict["reference"]
        self._resumed = bool(self._kept)
        self._chosen = {key: state_dict.get(key) for key in ("budget", "constraint")}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings under which the gradient cannot be right."""
        if stage == "fit" and self.weight > 0:
            refuse_unsupported(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a circuit that does not fit before any time is spent."""
        if self.weight == 0:
            return
        # The model itself cannot run yet under every strategy; its config can be read.
        model: Any = find_model(pl_module, self.model)
        config = model.config.get_text_config()
        self.circuit.check_model(config.num_hidden_layers, config.num_attention_heads)
        self.circuit.check_labels((self.probe or build_probe(self.circuit.probe)).labels)
        refuse_model(model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the penalty; with weight 0 there is nothing to install."""
        if self.weight > 0:
            self._trainer = trainer
            self._module = pl_module
            refuse_wrapping(pl_module, find_model(pl_module, self.model))
            if not self._resumed:
                # Weights are restored by now under every strategy. Inside a step, where the model
                # can be run, FSDP 1 cannot join its shards.
                model = find_model(pl_module, self.model)
                self._model_print = fingerprint_model(model, trainer.strategy.model)
            settings = self.every_n_steps, self.rows_per_step, self.budget
            pace = pace_of(trainer, self.circuit, *settings, self._chosen.get("budget"))
            end = end_of(trainer) if self.decay else math.inf
            self._schedule = Schedule(self.weight, self.warmup_steps, pace, self.decay, end)
            if self.constraint is not None:
                found = self._chosen.get("constraint")
                self._multiplier = Multiplier(self.constraint, self.weight, found)
            add_loss(pl_module, self._due)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See what steps take, if there is a budget."""
        if self._schedule is not None:
            self._schedule.pace.before_batch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With a budget, see what steps take."""
        if self._schedule is not None:
            skips = pl_module.automatic_optimization and (outputs or {}).get("loss") is None
            self._schedule.pace.after_batch(trainer, skips)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was, so that nothing leaks into the next fit."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _release(self, module: LightningModule) -> None:
        remove_loss(module, self._due)
        self._trainer = self._module = self._backend = self._reference = None
        self._resumed = self._reached = False
        self._served, self._chosen = None, {}

    def _due(self) -> Due | None:
        trainer, module = self._trainer, self._module
        assert trainer is not None
        assert module is not None
        if self._backend is None:
            # Not earlier: FSDP 1 can only run the model inside its own forward pass.
            self._backend = attach(find_model(module, self.model))
            refuse_backend(self._backend)
            self._reference = self._prepare(self._backend, trainer)
        assert self._schedule is not None
        step = steps_taken(trainer)
        share = self._schedule.pace.at(step)
        if step == self._served or share is None:
            return None
        self._served = step  # of the batches that are accumulated, the first that is not skipped
        accumulate = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        scale = (self._multiplier or self._schedule).weight_at(step) * accumulate * share.times
        return self._penalty(self._backend, step, trainer, share.rows, scale)

    def _penalty(
        self, backend: Backend, step: int, trainer: Trainer, n_rows: int, scale: float | Tensor
    ) -> Due:
        reference = self._reference
        assert reference is not None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        part, share = part_of(torch.randperm(len(reference), generator=generator)[:n_rows], trainer)
        rows, before = reference.select(part, backend.device)
        last = max(head.layer for head in self.circuit.heads)
        below = backend.n_layers if "log_probs" in self.penalty.needs else last

        def loss(now: Activations, reach: Reach | None) -> Tensor:
            terms = self.penalty.terms_of(now, before, rows.labels)
            penalty = self.penalty.weigh(terms)
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            logged = step % max(every, 1) == 0
            if reach is not None and not self._reached:
                assert self._module is not None
                check_reach(self.circuit, terms, below, reach, self._module)
                self._reached = True
            more: dict[str, Tensor] = {}
            if self._multiplier is not None:
                kept = self._multiplier.kept(self.circuit, now, before, rows.labels)
                more = self._multiplier.see(over_processes(trainer, kept, share))
            if logged or penalty.device.type == "cpu":  # elsewhere a check waits for the device
                check_finite(self.circuit, terms, more, step)
            if logged:
                log_penalty(trainer, self.circuit, penalty, terms, share, step, more)
            return penalty * (share * scale)

        question = Question(rows, self.circuit, self.penalty.needs)
        return Due(backend, question, loss, first=not self._reached, drop=self._drop)

    def _drop(self) -> None:
        self._served = None
        if self._multiplier is not None:
            self._multiplier.forget()

    def _prepare(self, backend: Backend, trainer: Trainer) -> Reference:
        path = self.reference_path or (Path(self._kept) if self._resumed else None)
        subject = self.circuit, self.penalty, self.probe, (self.pool_rows, self.seed)
        found = self.tokenizer, self._model_print, path, self._resumed
        reference, path = base_reference(backend, trainer, *subject, *found)
        self._kept = str(path.absolute())
        return reference
