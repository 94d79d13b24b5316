"""What a run shows at Weights & Biases: heatmaps, a table, charts, artifacts, alerts.

W&B is reached through Lightning's `WandbLogger` alone, in the first process, and nothing that
fails there ends the training. Nothing here imports wandb before there is a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from circuitkeep.callbacks.head_history import LONG_COLUMNS, HeadHistory
from circuitkeep.callbacks.periodic import tell_loggers
from circuitkeep.circuits import Circuit, dump_circuit
from circuitkeep.guard import Guard

MAX_ROWS = 10_000
"""W&B's charts read no more rows of a table; the steps of longer series are thinned evenly."""
ALERT_WAIT_S = 600
"""W&B sends no second alert of the same title within this time."""
CHART = "wandb/lineseries/v0"
"""W&B's preset of one line per value of a column."""
CHART_FIELDS = {"step": "step", "lineKey": "head", "lineVal": "score"}
"""What the preset wants -> the column of the chart's table."""
_MAX_TITLE = 63


class WandbViews:
    """What a `CircuitMonitor` shows beside scalars.

    A table that is logged whole at every evaluation would cost the square of its length, and so
    would wandb's incremental tables, whose every entry names all the entries before it. This one
    is logged anew when it has grown by an eighth, and at the end.
    """

    def __init__(self) -> None:
        self._rows_shown = 0
        self._stored: set[tuple[object, ...]] = set()
        self._below: set[str] = set()

    def show(
        self, trainer: Trainer, heads: HeadHistory, circuits: Iterable[Circuit], step: int
    ) -> None:
        """Log the pages of this evaluation and, if they have grown, the table and the charts."""
        _tell_wandb(trainer, partial(_log_pages, heads, circuits, step))
        if len(heads.rows) >= 1.125 * self._rows_shown:
            self.show_series(trainer, heads, circuits)
        self._store(trainer, circuits)

    def show_series(
        self, trainer: Trainer, heads: HeadHistory, circuits: Iterable[Circuit]
    ) -> None:
        """Log the table and the charts, unless they hold no more than when they were last."""
        if len(heads.rows) > self._rows_shown:
            self._rows_shown = len(heads.rows)
            _tell_wandb(trainer, partial(_log_series, heads, circuits))
        self._store(trainer, circuits)

    def alert_below(
        self, trainer: Trainer, values: Mapping[str, float], step: int, threshold: float
    ) -> None:
        """Alert of retentions that have fallen below `threshold`, each once until it is back."""
        shares = {key: x for key, x in values.items() if key.endswith("_retention")}
        below = {key for key, share in shares.items() if share < threshold}
        for key in sorted(below - self._below):
            text = f"{key} is {shares[key]:.1%} at step {step}, below {threshold:.0%}"
            alert(trainer, f"Below {threshold:.0%}: {key}", text)
        self._below = below

    def _store(self, trainer: Trainer, circuits: Iterable[Circuit]) -> None:
        """Log as artifacts what is not logged yet: the circuits, and the guards' references."""
        for circuit in circuits:
            self._once(trainer, _log_circuit, circuit)
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Guard):
                path = Path(callback.state_dict()["reference"])
                if path.is_file():
                    self._once(trainer, _log_reference, callback.circuit, path)

    def _once(
        self, trainer: Trainer, log: Callable[..., None], circuit: Circuit, *path: Path
    ) -> None:
        key = (log, circuit.name, *path)
        if key not in self._stored:
            self._stored.add(key)
            _tell_wandb(trainer, partial(log, circuit, *path))


def alert(trainer: Trainer, title: str, text: str, level: str = "WARN") -> None:
    """Send an alert by every W&B logger of `trainer`, from the first process.

    Where and to whom (mail, Slack), W&B's settings of the user say. An offline run sends it when
    it is synced. Alerts of one title come `ALERT_WAIT_S` apart at least.

    Args:
        trainer: Whose loggers are told; without one of W&B nothing happens.
        title: What happened; W&B takes 63 characters.
        text: In one or two sentences, with the figures.
        level: INFO, WARN or ERROR.
    """

    def send(logger: WandbLogger) -> None:
        logger.experiment.alert(
            title=title if len(title) <= _MAX_TITLE else f"{title[: _MAX_TITLE - 1]}…",
            text=text,
            level=level,
            wait_duration=ALERT_WAIT_S,
        )

    _tell_wandb(trainer, send)


def log_model(trainer: Trainer, folder: Path) -> None:
    """Log the trained model's directory as an artifact, where the logger uploads checkpoints."""

    def log(logger: WandbLogger) -> None:
        if logger._log_model:
            _log_artifact(logger, model_artifact(logger.experiment.id), "model", folder)

    _tell_wandb(trainer, log)


@contextmanager
def finished_runs(trainer: Trainer) -> Iterator[None]:
    """End the runs of W&B with the block, so that the next training of this process has its own."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        _tell_wandb(trainer, lambda logger: logger.experiment.finish(exit_code=failed))


def model_artifact(run_id: str) -> str:
    """The name of the artifact that holds the model which a run ended with."""
    return f"trained-model-{run_id}"


def chart_table(circuit: Circuit) -> str:
    """The key under which W&B keeps the table of the circuit's chart."""
    return f"Custom Chart Tables/{_chart_key(circuit)}_table"


def artifact_name(name: str) -> str:
    """`name` in the letters that W&B allows in it."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)


def _tell_wandb(trainer: Trainer, tell: Callable[[WandbLogger], None]) -> None:
    def tell_if(logger: Logger) -> None:
        if isinstance(logger, WandbLogger):
            tell(logger)

    tell_loggers(trainer, tell_if)


def _log_pages(
    heads: HeadHistory, circuits: Iterable[Circuit], step: int, logger: WandbLogger
) -> None:
    import wandb

    pages: dict[str, Any] = {
        f"circuit/{circuit.name}/heads": wandb.Html(heads.html(circuit), inject=False)
        for circuit in circuits
    }
    logger.log_metrics(pages, step=step)


def _log_series(heads: HeadHistory, circuits: Iterable[Circuit], logger: WandbLogger) -> None:
    import wandb

    rows = heads.long_rows(MAX_ROWS)
    logged: dict[str, Any] = {
        "circuit/heads": wandb.Table(columns=list(LONG_COLUMNS), data=list(rows))
    }
    for circuit in circuits:
        scores = [
            (step, f"{role} {head}", value)
            for step, name, role, head, quantity, value in rows
            if (name, quantity) == (circuit.name, "score")
        ]
        logged[_chart_key(circuit)] = wandb.plot_table(
            CHART,
            wandb.Table(columns=list(CHART_FIELDS.values()), data=list(scores)),
            CHART_FIELDS,
            {"title": f"{circuit.name}: scores of the named heads", "xname": "step"},
            split_table=True,
        )
    logger.log_metrics(logged, step=heads.rows[-1][0])


def _chart_key(circuit: Circuit) -> str:
    return f"circuit/{circuit.name}/head_scores"


def _log_circuit(circuit: Circuit, logger: WandbLogger) -> None:
    name = artifact_name(f"circuit-{circuit.name}")
    _log_artifact(logger, name, "circuit", {"circuit.yaml": dump_circuit(circuit)})


def _log_reference(circuit: Circuit, path: Path, logger: WandbLogger) -> None:
    name = artifact_name(f"reference-{circuit.name}")
    _log_artifact(logger, name, "reference", path, circuit=circuit.name)


def _log_artifact(
    logger: WandbLogger, name: str, kind: str, content: Path | Mapping[str, str], **metadata: Any
) -> None:
    """Log a file, all files of a directory, or texts by their file names."""
    import wandb

    artifact = wandb.Artifact(name, kind, metadata=metadata)
    if isinstance(content, Mapping):
        for file_name, text in content.items():
            with artifact.new_file(file_name, encoding="utf-8") as file:
                file.write(text)
    elif content.is_dir():
        artifact.add_dir(str(content))
    else:
        artifact.add_file(str(content))
    logger.experiment.log_artifact(artifact)
