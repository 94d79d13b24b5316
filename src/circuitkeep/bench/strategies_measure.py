"""Training a cell of the strategies suite, and comparing it with plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.bench.strategies_cells import (
    PENALTIES,
    SETTINGS,
    STRATEGIES,
    Cell,
    Outcome,
    Setting,
)
from circuitkeep.bench.strategies_expected import Guard, expected_gradients, largest_difference
from circuitkeep.bench.strategies_task import (
    BATCH_ROWS,
    Task,
    TaskSettings,
    batches,
    circuit,
)
from circuitkeep.bench.strategies_trainer import DATA_PARALLEL, HALF, precision_of, strategy_of
from circuitkeep.callbacks import CircuitPreservation
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.reference import Fingerprint, Reference, load_reference

WEIGHT = 2.0


def measure(cell: Cell, references: Path, folder: Path, rank: int) -> Outcome:
    """Train a cell in this process and its peers, and compare; every process gets the outcome.

    Args:
        cell: Which.
        references: Where `prepare_references` put them.
        folder: For Lightning.
        rank: Of this process.
    """
    setting = SETTINGS[cell.setting]
    settings = replace(setting.task, model=cell.model)
    try:
        if setting.resumed:
            difference, share = _resumed(cell, settings, folder, rank), None
        else:
            task = train(cell, settings, references, folder, rank, WEIGHT)
            difference, share = _compare(cell, settings, task, references, folder, rank, WEIGHT)
    except Exception as error:
        message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if isinstance(error, ValueError) and str(error).startswith("CircuitPreservation"):
            return Outcome(cell, "refused", message=str(error))
        return Outcome(cell, *_without(cell, settings, references, folder, rank, message))
    if difference <= setting.tolerance or setting.resumed:
        kind = "equal" if difference <= setting.tolerance else "differs"
        return Outcome(cell, kind, difference, share)
    kind, _, _, message = _without(cell, settings, references, folder, rank, "")
    kind = "differs" if kind == "failed" else kind
    return Outcome(cell, kind, difference, share, message)


def _without(
    cell: Cell, settings: TaskSettings, references: Path, folder: Path, rank: int, message: str
) -> tuple[str, float | None, None, str]:
    """Whether the same training without a penalty fails or differs too."""
    try:
        if SETTINGS[cell.setting].resumed:
            return "failed", None, None, message
        task = train(cell, settings, references, folder, rank, 0.0)
        difference, _ = _compare(cell, settings, task, references, folder, rank, 0.0)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return "elsewhere", None, None, f"{type(error).__name__}: {first}"
    if difference > SETTINGS[cell.setting].tolerance:
        return "elsewhere", difference, None, f"differs without a penalty too ({difference:.1e})"
    return "failed", None, None, message


def train(
    cell: Cell,
    settings: TaskSettings,
    references: Path,
    folder: Path,
    rank: int,
    weight: float,
    others: Sequence[Callback] = (),
) -> Task:
    """Train a cell in this process and its peers, with `others` before the guard."""
    setting = SETTINGS[cell.setting]
    callbacks: list[Any] = [*others]
    for number in range(setting.circuits):
        path = references / reference_name(cell.model, setting, number)
        callback = _guard(setting, number, weight, path)
        callback.load_state_dict({"reference": str(path)})  # the base is another model
        callbacks.append(callback)
    if "ema" in setting.callbacks:
        callbacks.append(EMAWeightAveraging(decay=0.5))
    task = Task(settings, seed=1)
    loader = _loader(cell, rank, _count(setting))
    trainer = _trainer(cell, task, folder, callbacks)
    torch.manual_seed(rank)
    trainer.fit(task, loader, loader if setting.validate else None)
    return task


def _resumed(cell: Cell, settings: TaskSettings, folder: Path, rank: int) -> float:
    """Largest difference between a resumed and an uninterrupted run, in their second step."""
    setting, checkpoint = SETTINGS[cell.setting], folder / f"{cell.model}-{cell.strategy}.ckpt"
    steps = []
    for epochs, resume, seed in ((2, None, 1), (1, None, 1), (2, checkpoint, 9)):
        task = Task(settings, seed)
        guard = _guard(setting, 0, WEIGHT, None)
        trainer = _trainer(cell, task, folder / cell.strategy, [guard], max_epochs=epochs)
        trainer.fit(task, _loader(cell, rank, 1), ckpt_path=resume)
        if epochs == 1:
            trainer.save_checkpoint(checkpoint)
        else:
            steps.append(task.recorded.steps[-1])
        kept = _load(Path(guard.state_dict()["reference"])).fingerprint.model
        if kept != fingerprint_model(Task(settings, seed=1)):
            raise AssertionError("the base's fingerprint is not that of the whole model")
    whole, again = steps
    return max(
        largest_difference(again.weights, whole.weights),
        largest_difference(again.gradients, whole.gradients),
    )


def _guard(setting: Setting, number: int, weight: float, path: Path | None) -> CircuitPreservation:
    return CircuitPreservation(
        circuit(number),
        PENALTIES[setting.penalty](),
        weight=weight,
        rows_per_step=setting.rows,
        pool_rows=setting.rows,
        every_n_steps=setting.every_n_steps,
        warmup_steps=setting.warmup_steps,
        reference=path,
    )


def _loader(cell: Cell, rank: int, count: int) -> DataLoader:
    world = DATA_PARALLEL.get(cell.strategy, 2)
    tokens = batches(count)[:, rank % world :: world].flatten(0, 1)
    return DataLoader(TensorDataset(tokens), BATCH_ROWS // world)


def _trainer(
    cell: Cell, task: Task, folder: Path, callbacks: list[Any], max_epochs: int = 1
) -> Trainer:
    setting = SETTINGS[cell.setting]
    return Trainer(
        accelerator="cpu",
        devices=STRATEGIES[cell.strategy],
        strategy=strategy_of(cell.strategy, task),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=max_epochs,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        val_check_interval=1 if setting.validate else None,
        **precision_of(setting.precision, cell.strategy),
        **setting.trainer,
    )


def _compare(
    cell: Cell,
    settings: TaskSettings,
    task: Task,
    references: Path,
    folder: Path,
    rank: int,
    weight: float,
) -> tuple[float, float]:
    setting = SETTINGS[cell.setting]
    steps = task.recorded.steps
    if not steps:
        raise AssertionError("no optimizer step was recorded")
    kept = [
        _load(references / reference_name(cell.model, setting, number))
        for number in range(setting.circuits)
    ]
    alone = None
    if settings.dropout and weight:
        # Masks cannot be drawn again on the joined batch: the same training without a penalty
        # stands for the task, in its first step, where the weights are the same.
        alone = train(cell, settings, references, folder, rank, 0.0).recorded.steps[0]
        steps = steps[:1]
    elif settings.dropout:
        return 0.0, 0.0
    accumulate = setting.trainer.get("accumulate_grad_batches", 1)
    plain = Task(replace(settings, compiled=False, checkpointing=""), seed=1)
    difference = share = 0.0
    for step in steps:
        taken = step.batches[0] // accumulate
        due = taken % setting.every_n_steps == 0
        warm = min(1.0, (taken + 1) / setting.warmup_steps) if setting.warmup_steps else 1.0
        guards = [
            Guard(
                circuit(index),
                PENALTIES[setting.penalty](),
                reference,
                weight * warm * setting.every_n_steps,
            )
            for index, reference in enumerate(kept)
            if due and weight
        ]
        half = HALF.get(setting.precision)
        expected = expected_gradients(
            plain, step, guards, accumulate, half, with_task=not settings.dropout
        )
        added = expected_gradients(plain, step, guards, accumulate, half, with_task=False)
        if alone is not None:
            expected = {key: value + alone.gradients[key] for key, value in expected.items()}
        share = max(share, _largest(added) / max(_largest(expected), 1e-30))
        expected = _clipped(expected, setting.trainer)
        difference = max(difference, largest_difference(step.gradients, expected))
    return difference, share


def _largest(values: Mapping[str, Tensor]) -> float:
    return max(value.abs().max().item() for value in values.values())


def _clipped(gradients: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    limit = options.get("gradient_clip_val")
    if limit is None:
        return dict(gradients)
    if options["gradient_clip_algorithm"] == "value":
        return {key: value.clamp(-limit, limit) for key, value in gradients.items()}
    norm = torch.stack([value.norm() for value in gradients.values()]).norm().item()
    factor = min(1.0, limit / (norm + 1e-6))
    return {key: value * factor for key, value in gradients.items()}


def _count(setting: Setting) -> int:
    steps = 3 if setting.every_n_steps > 1 else 2
    skipped = 2 if setting.task.returns == "none" else 1
    return steps * setting.trainer.get("accumulate_grad_batches", 1) * skipped


def reference_name(model: str, setting: Setting, number: int) -> str:
    """The file of a base model's activations."""
    return f"{model}-{number}-{setting.penalty}-{setting.rows}.safetensors"


def prepare_references(cells: Sequence[Cell], references: Path) -> None:
    """Make the references that `cells` need, each by a training step of its base model."""
    for cell in cells:
        setting = SETTINGS[cell.setting]
        for number in range(setting.circuits):
            path = references / reference_name(cell.model, setting, number)
            if path.exists():
                continue
            guard = _guard(setting, number, WEIGHT, path)
            loader = DataLoader(TensorDataset(batches(1)[0]), BATCH_ROWS)
            Trainer(
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                max_steps=1,
                limit_val_batches=0,
                default_root_dir=references,
                callbacks=[guard],
            ).fit(Task(TaskSettings(model=cell.model), seed=0), loader, loader)


def _load(path: Path) -> Reference:
    anything = Fingerprint("", "", "", "", "")
    return load_reference(path, anything, tuple(asdict(anything)))
