"""`CircuitPreservation`: adds the penalty for a drifting circuit to the training loss."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from circuitkeep.callbacks.added_loss import add_loss, remove_loss
from circuitkeep.callbacks.budget import WithinBudget, pace_of
from circuitkeep.callbacks.periodic import steps_taken
from circuitkeep.callbacks.processes import LightningTraining, end_of
from circuitkeep.callbacks.unsupported import refuse_unsupported, refuse_wrapping
from circuitkeep.capture import find_model
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.guard import Guard
from circuitkeep.guard.due import Due
from circuitkeep.guard.schedule import Pace


class CircuitPreservation(Guard, Callback):
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
        rows_per_step: Probe rows per due step, over all ranks; with a budget, the most. None is
            one per process: no process then runs a row that counts for nothing.
        budget: The most time that the penalty may add, as a share of the time without it (0.03);
            the interval and the rows are then chosen by it: see `WithinBudget`.
        pool_rows: Rows in the pool; few rows overfit (8 do, 64 hardly).
        seed: Of the pool and of the choice of rows.
        model: Attribute path of the model in the LightningModule, if it holds several.
        tokenizer: A tokenizer, or where to load one; default: the model's own directory.
        reference: Where the reference is kept, if not under the trainer's root directory. A file
            that is there is used, if it was made of the same model, tokenizer, probe and circuit.
        follow_every_n_steps: Look so often, on train rows, whether other heads have taken up a
            role's job (`circuitkeep.evals.migration`). Patterns and outputs are then held on those
            that do it, at what they do at that time, and predictions at the base's, and a warning
            names them. None holds the named heads, whatever others do.

    Raises:
        ValueError: On construction for settings out of range or an unreadable circuit; at the
            start of training for a circuit that does not fit the model, or settings of the trainer
            under which the gradient cannot be right; in the first step, if the penalty does not
            reach the model's parameters; later, if it is not finite.
    """

    owner = "CircuitPreservation"
    _trainer: Trainer | None = None
    _module: LightningModule | None = None
    _pace: Pace | None = None

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
        self.check_circuit(model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the penalty; with weight 0 there is nothing to install."""
        if self.weight > 0:
            self._trainer = trainer
            self._module = pl_module
            model = find_model(pl_module, self.model)
            refuse_wrapping(pl_module, model)
            # Weights are restored by now under every strategy. Inside a step, where the model can
            # be run, FSDP 1 cannot join its shards.
            resumed = self._resumed
            model_print = "" if resumed else fingerprint_model(model, trainer.strategy.model)
            training = LightningTraining(trainer, pl_module)
            settings = self.every_n_steps, self.rows_of(training), self.budget
            chosen = self._chosen.get("budget")
            self._pace = pace_of(trainer, self.circuit, *settings, chosen)
            end = end_of(trainer) if self.decay else math.inf
            self.begin(training, self._pace, end, model_print)
            add_loss(pl_module, self._due)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See what steps take, if there is a budget."""
        if isinstance(self._pace, WithinBudget):
            self._pace.before_batch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With a budget, see what steps take."""
        if isinstance(self._pace, WithinBudget):
            skips = pl_module.automatic_optimization and (outputs or {}).get("loss") is None
            self._pace.after_batch(trainer, skips)

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
        self._trainer = self._module = None
        self.end()

    def _due(self) -> Due | None:
        trainer, module = self._trainer, self._module
        assert trainer is not None
        assert module is not None
        accumulate = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        return self.due(steps_taken(trainer), accumulate)
