"""`CircuitGate`: what happens when a training breaks a circuit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning_utilities.core.rank_zero import rank_zero_warn

from circuitkeep.callbacks.monitor import CircuitMonitor
from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.callbacks.wandb_views import alert
from circuitkeep.circuits import Circuit, did_you_mean

ACTIONS = ("warn", "stop", "roll_back", "strengthen")
EXIT_CODE = 3
"""Of ``circuitkeep train`` when a gate ended the training."""


class CircuitGate(Callback):
    """Watch what a `CircuitMonitor` measures, and act when a circuit stays below a threshold.

    It looks at every measurement of the trainer's monitor. When one of the values of a circuit was
    below its threshold in `patience` measurements in a row, the gate trips for that circuit:

    - ``warn``: warn, and let the training go on. It warns again once the circuit had come back.
    - ``stop``: end the training after this step.
    - ``roll_back``: end it, and give the model the weights of the last measurement in which every
      circuit reached its thresholds. Those are kept in a file, written anew at each such
      measurement; the optimizer's state is not, so go on from there by a new training.
    - ``strengthen``: hold the circuit harder from the next step on, and go on: a fixed weight is
      multiplied by `factor`, of a constraint the accepted drift is divided by it. Again at every
      further `patience` measurements below. Needs a `CircuitPreservation` for the circuit.

    Args:
        thresholds: What is measured -> its least value, of every circuit that the monitor has:
            ``identity_retention``, ``causal_retention``, ``behaviour_retention``, ``behaviour``,
            ``causal_effect_nats``, or ``<role>/score``; ``manifold/<manifold>/shape`` or
            ``/place``, of those that have the manifold.
        action: One of the above.
        patience: Measurements in a row.
        factor: For ``strengthen``, above 1.
        folder: For ``roll_back``: where the weights are kept; default ``gate`` under the trainer's
            root directory.

    Attributes:
        tripped: Circuit -> what was below, in a sentence; of the latest time.
        ended: Whether the gate ended the training.

    Raises:
        ValueError: On construction for settings out of range; at the start if the trainer has no
            monitor, the monitor does not measure what a threshold is for, or the action cannot be
            done.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float] | None = None,
        action: str = "stop",
        patience: int = 1,
        factor: float = 2.0,
        folder: str | Path | None = None,
    ) -> None:
        self.thresholds = {"behaviour_retention": 0.9} if thresholds is None else dict(thresholds)
        if not self.thresholds:
            raise ValueError("CircuitGate: thresholds is empty, so that nothing is watched")
        if action not in ACTIONS:
            raise ValueError(
                f"CircuitGate: there is no action {action!r}" + did_you_mean(str(action), ACTIONS)
            )
        if patience < 1:
            raise ValueError(f"CircuitGate: patience must be at least 1, got {patience}")
        if not 1 < factor < float("inf"):
            raise ValueError(f"CircuitGate: factor must be above 1, got {factor}")
        self.action = action
        self.patience = patience
        self.factor = factor
        self.folder = None if folder is None else Path(folder)
        self.tripped: dict[str, str] = {}
        self.ended = False
        self._below: dict[str, int] = {}
        self._measured: set[str] = set()
        self._kept: str | None = None
        self._monitor: CircuitMonitor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the monitor."""
        if stage != "fit":
            return
        monitors = [one for one in _callbacks(trainer) if isinstance(one, CircuitMonitor)]
        if not monitors:
            raise ValueError("CircuitGate looks at what a CircuitMonitor measures; add one")
        self._monitor = monitors[0]
        names = {circuit.name for circuit in self._monitor.circuits}
        guards = self._guards(trainer)
        if self.action == "strengthen" and (bare := names - set(guards)):
            raise ValueError(
                f"CircuitGate: action='strengthen' needs a CircuitPreservation with a weight above "
                f"0 for the circuit {min(bare)!r}"
            )
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if self.action == "roll_back" and not whole:
            raise ValueError(
                f"CircuitGate: action='roll_back' is not possible under "
                f"{type(trainer.strategy).__name__}, where no process has all weights; stop, and "
                "resume from a checkpoint of ModelCheckpoint's"
            )
        self.ended = False
        self._monitor.listeners.append(self._look)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        if self._monitor is not None:
            self._monitor.listeners.remove(self._look)
            self._monitor = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll back, now that the last checkpoint of the training as it was is written."""
        if self.ended and self.action == "roll_back" and self._kept is not None:
            kept = trainer.strategy.load_checkpoint(self._kept)
            trainer.strategy.load_model_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """How long which circuit has been below, and where the last good weights are."""
        below, measured = dict(self._below), sorted(self._measured)
        return {"below": below, "measured": measured, "kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._below, self._kept = dict(state_dict["below"]), state_dict["kept"]
        self._measured = set(state_dict["measured"])

    def _look(
        self, trainer: Trainer, module: LightningModule, values: Mapping[str, float], step: int
    ) -> None:
        """See one measurement; called in every process with the same values."""
        if trainer.state.fn != "fit":
            return
        assert self._monitor is not None
        below = {}
        for circuit in self._monitor.circuits:
            if found := self._too_low(circuit, values):
                below[circuit.name] = found
        self._below = {name: self._below.get(name, 0) + 1 for name in below}
        for name, found in below.items():
            times = self._below[name]
            again = self.action == "strengthen" and times % self.patience == 0
            if times == self.patience or again:
                self._trip(trainer, name, f"{found} at step {step}")
        if not below and self.action == "roll_back":
            self._keep(trainer)

    def _too_low(self, circuit: Circuit, values: Mapping[str, float]) -> str:
        """What of a circuit is below its threshold, in words; empty if nothing is."""
        found = []
        for key, least in self.thresholds.items():
            if key.startswith("manifold/") and self._is_of_others(key, circuit):
                continue
            name = f"circuit/{circuit.name}/{key}"
            if name in values:
                self._measured.add(name)
                if values[name] < least:
                    found.append(f"{name} is {values[name]:.3g}, below {least:g},")
            elif name in self._measured:  # the monitor leaves out what is not finite
                found.append(f"{name} is not finite any more")
            else:
                near = did_you_mean(name, values)
                raise ValueError(f"CircuitGate: {name} is not measured{near}")
        return " and ".join(found)

    def _is_of_others(self, key: str, circuit: Circuit) -> bool:
        """Whether other circuits of the monitor have the manifold that a threshold is for."""
        assert self._monitor is not None
        name = key.split("/")[1]
        owners = [one for one in self._monitor.circuits if name in (m.name for m in one.manifolds)]
        return bool(owners) and circuit not in owners

    def _trip(self, trainer: Trainer, circuit: str, found: str) -> None:
        self.tripped[circuit] = found
        then = {
            "warn": "the training goes on",
            "stop": "the training ends here",
            "roll_back": "the training ends here, with the weights of the last good measurement",
            "strengthen": f"it is held {self.factor:g} times harder from here on",
        }[self.action]
        if self.action == "roll_back" and self._kept is None:
            then = "the training ends here, with the weights that it has: no measurement was good"
        rank_zero_warn(f"the gate tripped: {found}; {then}")
        alert(trainer, f"Gate tripped: {circuit}", f"{found}; {then}", "ERROR")
        if self.action == "strengthen":
            self._guards(trainer)[circuit].strengthen(self.factor)
        elif self.action != "warn":
            self.ended = trainer.should_stop = True

    def _keep(self, trainer: Trainer) -> None:
        path = (self.folder or Path(trainer.default_root_dir) / "gate") / "last-good.ckpt"
        written = path.with_name("being-written.ckpt")
        trainer.save_checkpoint(written, weights_only=True)
        if trainer.is_global_zero:
            os.replace(written, path)
        trainer.strategy.barrier("last-good.ckpt")
        self._kept = str(path)

    def _guards(self, trainer: Trainer) -> dict[str, CircuitPreservation]:
        """The guards that have a weight to multiply, by the circuit's name."""
        return {
            one.circuit.name: one
            for one in _callbacks(trainer)
            if isinstance(one, CircuitPreservation) and one.weight > 0
        }


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]
