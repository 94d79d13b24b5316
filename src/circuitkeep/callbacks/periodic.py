"""Measuring now and then during a training, and telling every logger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_warn

Listener = Callable[[Trainer, LightningModule, Mapping[str, float], int], None]
_FAILED: WeakSet[Logger] = WeakSet()
_SUMMARIZED: WeakKeyDictionary[WandbLogger, set[str]] = WeakKeyDictionary()


class Periodic(Callback, ABC):
    """Measures before the training, every n optimizer steps, and when the trainer has validated.

    Never twice after the same step. What is measured is logged at `steps_taken`.

    Attributes:
        listeners: Called with what was measured, after it was logged, in every process.
    """

    def __init__(self, every_n_steps: int | None, at_validation: bool) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, or null; got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.at_validation = at_validation
        self.listeners: list[Listener] = []
        self._last_step: int | None = None

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule, step: int) -> dict[str, float]:
        """The values to log, by key; called in every process."""

    def report(self, trainer: Trainer, values: Mapping[str, float], step: int) -> None:
        """Log what was measured; called in every process."""
        log_metrics(trainer, values, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model as it came; a resumed run has done so."""
        if steps_taken(trainer) == 0:
            self._last_step = None
            self.take_turn(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every `every_n_steps` optimizer steps."""
        if self.every_n_steps and steps_taken(trainer) % self.every_n_steps == 0:
            self.take_turn(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure beside the trainer's own validation."""
        if self.at_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.take_turn(trainer, pl_module)

    def take_turn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and report, unless that was done after this step."""
        step = steps_taken(trainer)
        if step != self._last_step:
            values = self.measure(trainer, pl_module, step)
            self.report(trainer, values, step)
            self._last_step = step
            for listener in self.listeners:
                listener(trainer, pl_module, values, step)


def steps_taken(trainer: Trainer) -> int:
    """How many optimizer steps the weights have had; 0 is the model as it came.

    Under manual optimization, where a batch may take the steps of several optimizers or none, how
    many batches were trained on. That is Lightning's own step of the batch that comes next, so
    what is measured at it stands beside that batch's training loss.
    """
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]


def log_metrics(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Log `values` at `step` with every logger of the trainer; see `tell_loggers`."""

    def tell(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            _summarize(logger, values)
        logger.log_metrics(dict(values), step=step)

    if values:
        tell_loggers(trainer, tell)


def tell_loggers(trainer: Trainer, tell: Callable[[Logger], None]) -> None:
    """Call `tell` with every logger of the trainer, in the process that writes; see `attempt`."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            attempt(logger, partial(tell, logger))


def attempt(logger: Logger, action: Callable[[], None]) -> None:
    """Do what may fail (no network, a full disk) without ending the training.

    It is warned of once per logger, which is tried again the next time.
    """
    try:
        action()
    except Exception as error:
        if logger not in _FAILED:
            _FAILED.add(logger)
            rank_zero_warn(
                f"{type(logger).__name__} could not log ({type(error).__name__}: {error}); the "
                "training goes on, and this logger is not warned of again"
            )


def _summarize(logger: WandbLogger, names: Iterable[str]) -> None:
    """Have W&B keep minimum, mean and last value; not by ``circuit/*``, which ``*`` may outdo."""
    known = _SUMMARIZED.setdefault(logger, set())
    for name in names:
        if name not in known:
            known.add(name)
            whole = f"{logger._prefix}-{name}" if logger._prefix else name
            # A dot would lead into a nested value.
            logger.experiment.define_metric(
                whole.replace(".", "\\."),
                step_metric="trainer/global_step",
                summary="min,mean,last",
            )
