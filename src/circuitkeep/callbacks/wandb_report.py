"""A comparison at Weights & Biases: the report as an artifact, made of the runs' models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_warn

from circuitkeep.callbacks.wandb_logger import SteadyWandbLogger, run_id_of
from circuitkeep.callbacks.wandb_views import model_artifact

NAME = "comparison"


def report_logger(project: str, folder: str | os.PathLike[str]) -> WandbLogger:
    """Begin a run of the kind ``compare``.

    Args:
        project: PROJECT or ENTITY/PROJECT, where the trainings are.
        folder: Where W&B keeps its files.

    Raises:
        ValueError: If `project` is not of that form, or nobody is logged in.
    """
    entity, _, name = project.rpartition("/")
    if not name or "/" in entity:
        raise ValueError(f"wandb must be PROJECT or ENTITY/PROJECT, got {project!r}")
    logger = SteadyWandbLogger(
        project=name, entity=entity or None, save_dir=folder, job_type="compare"
    )
    try:
        _ = logger.experiment
    except Exception as error:  # wandb has its own kinds
        raise ValueError(f"wandb={project} cannot start: {error}") from error
    return logger


def publish_report(
    logger: WandbLogger, files: Iterable[Path], checkpoints: Mapping[str, str]
) -> None:
    """Log a report, and end the run.

    The models that trainings ended with, and that `wandb_views.log_model` logged, are declared as
    what the report was made of: W&B's graph leads from the training to its model to the report.
    An offline run cannot declare that. The artifact's metadata name runs and paths in any case.

    Args:
        logger: Of `report_logger`.
        files: Of the report; a page (``.html``) is shown in the run too.
        checkpoints: Path of each compared checkpoint, by name.
    """
    import wandb

    run = logger.experiment
    runs = {name: run_of_checkpoint(path) for name, path in checkpoints.items()}
    made_of = {name: {"path": path, "run": runs[name]} for name, path in checkpoints.items()}
    artifact = wandb.Artifact(NAME, "report", metadata={"checkpoints": made_of})
    pages: dict[str, Any] = {}
    for path in files:
        artifact.add_file(str(path))
        if path.suffix == ".html":
            pages[f"{NAME}/report"] = wandb.Html(str(path), inject=False)
    if not run.offline:
        for name, path in checkpoints.items():
            if runs[name] and Path(path).name == "model":
                _use(run, f"{model_artifact(str(runs[name]))}:latest")
    run.log_artifact(artifact)
    logger.log_metrics(pages)
    run.finish()


def run_of_checkpoint(path: str) -> str | None:
    """W&B's id of the run that wrote a checkpoint, ``RUN/model`` or ``RUN/checkpoints/...``."""
    place = Path(path).absolute()
    if place.name == "model":
        return run_id_of(place.parent)
    return run_id_of(place.parents[1]) if place.parent.name == "checkpoints" else None


def _use(run: Any, artifact: str) -> None:
    try:
        run.use_artifact(artifact)
    except Exception as error:  # it was not uploaded, or W&B is down
        rank_zero_warn(
            f"W&B has no artifact {artifact} ({type(error).__name__}: {error}): the report is "
            "logged without a link to that training; train with logger.wandb.log_model=true"
        )
