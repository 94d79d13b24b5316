"""`CircuitMonitor`: what becomes of circuits during a training, in every logger."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_warn

from circuitkeep.callbacks.base_state import Points, load_base, save_base
from circuitkeep.callbacks.head_history import HeadHistory
from circuitkeep.callbacks.periodic import Periodic, steps_taken, tell_loggers
from circuitkeep.callbacks.wandb_views import WandbViews, alert
from circuitkeep.capture import Backend, attach, find_model
from circuitkeep.circuits import Circuit
from circuitkeep.evals.circuit import CircuitMeasurement, measure_circuit, retention
from circuitkeep.evals.migration import migration
from circuitkeep.guard.subject import as_circuit, tokenizer_of
from circuitkeep.manifolds import manifold_rows
from circuitkeep.manifolds.drift import drift_values
from circuitkeep.probes import ProbeBatch
from circuitkeep.probing import probe_rows

CircuitFile = str | os.PathLike[str] | Circuit


class CircuitMonitor(Periodic):
    """Measures circuits of the model in training on held-out probe rows, and logs what it finds.

    The first measurement, before the training, is the base that later ones are compared with. It
    is kept in checkpoints together with the rows, so that a resumed run goes on with both.

    Every logger gets, at the number of optimizer steps the weights have had,
    ``circuit/<name>/<role>/score`` (mean attention of the role's heads to its targets),
    ``circuit/<name>/behaviour``, ``/causal_effect_nats`` (loss that ablating the heads jointly
    costs) and, against the base, ``/identity_retention``, ``/causal_retention`` and
    ``/behaviour_retention``. A retention whose base is not positive says nothing and is not
    logged. ``/<role>/lost`` and ``/<role>/risen`` count the named heads that no longer do the
    role's job and the others that have taken it up (see `circuitkeep.evals.migration`); a warning
    names them once, since a circuit that has moved is no longer the one that is named. Of each of
    the circuit's manifolds ``/manifold/<manifold>/shape`` and the other figures of
    `circuitkeep.functional.manifolds.TransformDrift` are logged, noise included. Head by
    head the scores go to ``heads.csv`` beside the CSV logger's metrics, to TensorBoard as an
    image, to W&B as pages, charts and a table, with circuit and reference as artifacts: see
    ``docs/wandb.md``.

    Neither weights nor gradients, flags or random state are touched: the training is
    bit-identical to one without. All processes measure the same rows, as the collectives of a
    sharded model need; the first one writes. ``trainer.validate`` measures too, and compares
    with a base if the callback has one. A trainer takes one monitor, with all circuits.

    Args:
        circuits: A circuit file or `Circuit`, several in a list, or in a mapping from the names
            they shall have here.
        every_n_steps: Measure after each so many optimizer steps; None not to.
        at_validation: Measure when the trainer has validated.
        rows: Held-out rows per circuit.
        seed: Of the rows.
        causal: Whether to ablate; without, there is nothing causal in the log.
        model: Attribute path of the model in the LightningModule, if it holds several.
        tokenizer: A tokenizer, or where to load one; default: the model's own directory.
        alert_below: W&B sends an alert when a retention falls below this share; None for none.

    Attributes:
        history: What was logged, evaluation by evaluation, each with its ``step``.
        heads: The scores of the named heads during training.

    Raises:
        ValueError: On construction for settings out of range, an unreadable circuit or two of
            one name; at the start for a circuit that does not fit the model, or a checkpoint
            that was written with another circuit of the same name.
    """

    def __init__(
        self,
        circuits: CircuitFile | Iterable[CircuitFile] | Mapping[str, CircuitFile],
        every_n_steps: int | None = None,
        at_validation: bool = True,
        rows: int = 128,
        seed: int = 10_000,
        causal: bool = True,
        model: str | None = None,
        tokenizer: Any = None,
        alert_below: float | None = 0.9,
    ) -> None:
        super().__init__(every_n_steps, at_validation)
        if rows < 1:
            raise ValueError(f"CircuitMonitor: rows must be at least 1, got {rows}")
        if alert_below is not None and not 0 < alert_below <= 1:
            raise ValueError(
                "CircuitMonitor: alert_below is a share of the base's value, from 0 to 1, or null; "
                f"got {alert_below}"
            )
        self.circuits = _as_circuits(circuits)
        self.rows = rows
        self.seed = seed
        self.causal = causal
        self.alert_below = alert_below
        self.model = model
        self.tokenizer = tokenizer
        self.history: list[dict[str, float]] = []
        self.heads = HeadHistory()
        self._bases: dict[str, CircuitMeasurement] = {}
        self._batches: dict[str, ProbeBatch] = {}
        self._points: dict[str, Points] = {}
        self._backend: Backend | None = None
        self._warned: set[str] = set()
        self._moves: list[str] = []
        self._views = WandbViews()

    def state_dict(self) -> dict[str, Any]:
        """The base, the rows it was measured on, and everything measured since."""
        return {
            "last_step": self._last_step,
            "history": [dict(entry) for entry in self.history],
            "heads": list(self.heads.rows),
            "bases": {
                circuit.name: save_base(
                    circuit, base, self._batches[circuit.name], self._points[circuit.name]
                )
                for circuit in self.circuits
                if (base := self._bases.get(circuit.name)) is not None
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the base and the rows of the run that was stopped."""
        for circuit in self.circuits:
            if (saved := state_dict["bases"].get(circuit.name)) is not None:
                base, batch, points = load_base(circuit, saved)
                self._bases[circuit.name], self._batches[circuit.name] = base, batch
                self._points[circuit.name] = points
        self._last_step = state_dict["last_step"]
        self.history = state_dict["history"]
        self.heads = HeadHistory(state_dict["heads"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the model again: a callback may serve several trainers."""
        self._backend, self._views = None, WandbViews()
        if stage == "fit":
            find_model(pl_module, self.model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the base; a resumed run has one, or is told that it has not."""
        if steps_taken(trainer) == 0:
            self.history, self.heads = [], HeadHistory()
            self._bases, self._batches, self._points = {}, {}, {}
        elif missing := [c.name for c in self.circuits if c.name not in self._bases]:
            rank_zero_warn(
                f"no checkpoint holds a base measurement of circuit {', '.join(missing)}: its "
                f"retention is against the model as it is now, at step {steps_taken(trainer)}"
            )
            self._last_step = None
            self.take_turn(trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure beside the trainer's own validation, in and outside of training."""
        if self.at_validation and trainer.state.fn == "validate":
            self._last_step = None
            self.take_turn(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the complete table."""
        self._show_series(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Log the complete table of an interrupted training."""
        self._show_series(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._backend = None

    def measure(self, trainer: Trainer, pl_module: LightningModule, step: int) -> dict[str, float]:
        """Measure every circuit; in training, the first time is the base."""
        if self._backend is None:
            self._backend = attach(find_model(pl_module, self.model))
        training = trainer.state.fn == "fit"
        values: dict[str, float] = {}
        for circuit in self.circuits:
            batch = self._batch(circuit, self._backend)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                now = measure_circuit(self._backend, circuit, batch, self.causal)
                manifolds = manifold_rows(self._backend, batch, circuit.manifolds)
            points = {name: one.means() for name, one in manifolds.items()}
            if training:
                base = self._bases.setdefault(circuit.name, now)
                self._points.setdefault(circuit.name, points)
                self.heads.add(step, circuit, now, base)
            values |= self._values(circuit, now, points)
        self.history.append({"step": step, **values})
        return values

    def report(self, trainer: Trainer, values: Mapping[str, float], step: int) -> None:
        """Log the values, and in training the heads one by one."""
        super().report(trainer, values, step)
        if trainer.state.fn == "fit":
            tell_loggers(trainer, lambda logger: self._write_heads(logger, step))
            self._views.show(trainer, self.heads, self.circuits, step)
            if self.alert_below is not None:
                self._views.alert_below(trainer, values, step, self.alert_below)
        for text in self._moves:
            alert(trainer, text.partition(":")[0], f"{text}, at step {step}")
        self._moves = []

    def _show_series(self, trainer: Trainer) -> None:
        if trainer.state.fn == "fit":
            self._views.show_series(trainer, self.heads, self.circuits)

    def _batch(self, circuit: Circuit, backend: Backend) -> ProbeBatch:
        if circuit.name not in self._batches:
            tokenizer = tokenizer_of(backend, self.tokenizer)
            self._batches[circuit.name] = probe_rows(
                circuit, backend, tokenizer, "held_out", self.rows, self.seed
            )
        return self._batches[circuit.name]

    def _values(self, circuit: Circuit, now: CircuitMeasurement, means: Points) -> dict[str, float]:
        values = {
            f"{role}/score": score.nanmean().item()
            for role, score in now.role_scores(circuit).items()
        }
        values["behaviour"] = now.behaviour.nanmean().item()
        values["causal_effect_nats"] = now.effect_nats.nanmean().item()
        if circuit.name in self._bases:
            kept = retention(now, self._bases[circuit.name], circuit)
            if not self.causal:
                del kept["causal_retention"]
            for kind, share in kept.items():
                self._warn_of(circuit, kind, share)
            values |= kept | self._moved(circuit, now)
            values |= drift_values(circuit.manifolds, self._points[circuit.name], means)
        prefix = f"circuit/{circuit.name}"
        return {f"{prefix}/{key}": value for key, value in values.items() if math.isfinite(value)}

    def _moved(self, circuit: Circuit, now: CircuitMeasurement) -> dict[str, float]:
        values: dict[str, float] = {}
        for role in circuit.roles:
            before = self._bases[circuit.name].scores[role.name].nanmean(0)
            found = migration(role, now.scores[role.name].nanmean(0), before)
            values[f"{role.name}/lost"] = float(len(found.lost))
            values[f"{role.name}/risen"] = float(len(found.risen))
            key = f"circuit/{circuit.name}/{role.name}"
            if found.risen and key not in self._warned:
                self._warned.add(key)
                self._moves.append(f"{key} has moved: {found}")
                rank_zero_warn(self._moves[-1])
        return values

    def _warn_of(self, circuit: Circuit, kind: str, share: float) -> None:
        key = f"circuit/{circuit.name}/{kind}"
        if math.isnan(share) and key not in self._warned:
            self._warned.add(key)
            rank_zero_warn(
                f"{key} is not logged: what it compares with, measured on the base model, is not "
                "positive, so that a ratio says nothing"
            )

    def _write_heads(self, logger: Logger, step: int) -> None:
        if isinstance(logger, CSVLogger):
            self.heads.write_csv(Path(logger.log_dir) / "heads.csv")
        elif isinstance(logger, TensorBoardLogger):
            for circuit in self.circuits:
                tag = f"circuit/{circuit.name}/heads"
                logger.experiment.add_image(tag, self.heads.image(circuit), step)
                rows = " · ".join(self.heads.scores(circuit)[1])
                text = f"Darkest: {self.heads.top(circuit):g}. Rows, from the top: {rows}"
                logger.experiment.add_text(tag, text, step)


def _as_circuits(
    circuits: CircuitFile | Iterable[CircuitFile] | Mapping[str, CircuitFile],
) -> tuple[Circuit, ...]:
    if isinstance(circuits, str | os.PathLike | Circuit):
        found = [as_circuit(circuits)]
    elif isinstance(circuits, Mapping):
        found = [replace(as_circuit(circuit), name=name) for name, circuit in circuits.items()]
    else:
        found = [as_circuit(circuit) for circuit in circuits]
    names = [circuit.name for circuit in found]
    if not names:
        raise ValueError("CircuitMonitor: circuits is empty; name at least one circuit file")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"CircuitMonitor: two circuits have the name {repeated.pop()!r}; pass a mapping from "
            "the names they shall have in the log"
        )
    return tuple(found)
