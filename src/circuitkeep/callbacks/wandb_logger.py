"""Lightning's W&B logger, for trainings that go on when W&B does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from circuitkeep.callbacks.periodic import attempt

_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")


class SteadyWandbLogger(WandbLogger):
    """A `WandbLogger` by which no training fails.

    If W&B cannot be reached at the start, the run is kept on disk as an offline one, with one
    warning; ``wandb sync FOLDER`` uploads it later. What fails after that is warned of once.
    Not being logged in is not W&B's fault, and raises.

    Args:
        init_timeout_s: How long to wait for W&B at the start; its own default is 90.
        **arguments: Of `lightning.pytorch.loggers.WandbLogger`, and of ``wandb.init``.
    """

    def __init__(self, init_timeout_s: float = 20.0, **arguments: Any) -> None:
        settings = arguments.pop("settings", None) or {}
        if isinstance(settings, Mapping):
            settings = {"init_timeout": init_timeout_s, **settings}
        super().__init__(**arguments, settings=settings)
        # Lightning 2.6 passes it always, and wandb warns of it always.
        self._wandb_init.pop("anonymous")

    @property
    def experiment(self) -> Any:
        """The run; see `WandbLogger`."""
        if self._experiment is not None:
            return super().experiment
        try:
            return super().experiment
        except Exception as error:
            if not _unreachable(error):
                raise
            self._wandb_init["mode"] = "offline"
            run = super().experiment
            rank_zero_warn(
                f"W&B cannot be reached ({_first_line(error)}): the training goes on, and its run "
                f"is kept on disk; `wandb sync {Path(run.dir).parent}` uploads it later"
            )
            return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """See `WandbLogger`."""
        self._attempt(partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """See `WandbLogger`."""
        self._attempt(partial(super().log_hyperparams, params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """See `WandbLogger`."""
        self._attempt(partial(super().after_save_checkpoint, checkpoint_callback))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """See `WandbLogger`."""
        self._attempt(partial(super().finalize, status))

    def _attempt(self, action: Callable[[], None]) -> None:
        _ = self.experiment  # the user's mistakes raise here
        attempt(self, action)


def run_id_of(folder: Path) -> str | None:
    """W&B's id of the run that was logged last below `folder`; None if there is none."""
    found = filter(None, map(_FOLDER.fullmatch, (p.name for p in folder.glob("wandb/*run-*"))))
    return max((match.groups() for match in found), default=(None, None))[1]


def _unreachable(error: Exception) -> bool:
    from wandb.errors import AuthenticationError, CommError

    reasons = (CommError, TimeoutError, ConnectionError)
    return isinstance(error, reasons) and not isinstance(error, AuthenticationError)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
