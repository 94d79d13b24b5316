"""``circuitkeep train``: fine-tune a model, guarding a circuit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from circuitkeep.capture.models import save_model
from circuitkeep.circuits import Circuit
from circuitkeep.cli.settings import (
    circuit_of,
    data_module,
    evaluation_data,
    model_and_tokenizer,
)


def run(config: DictConfig) -> None:
    """Train, then save the model under ``<output>/model``."""
    resume = config.trainer.resume
    if resume is not None and not Path(resume).is_file():
        raise FileNotFoundError(f"trainer.resume: there is no checkpoint at {resume}")
    _check_devices(config.trainer)
    output = Path(config.output)
    _check_writable(output)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    circuit = circuit_of(config.circuit)
    model, tokenizer = model_and_tokenizer(config.model)
    data = data_module(config.data, tokenizer)
    task = instantiate(config.task, _partial_=True)(model=model)
    settings = {key: value for key, value in config.trainer.items() if key != "resume"}
    trainer = instantiate(settings, _partial_=True)(
        logger=[instantiate(node) for node in config.logger.values()],
        callbacks=_callbacks(config, circuit, tokenizer),
        default_root_dir=str(output),
    )
    trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        save_model(model, output / "model", tokenizer)
        print(f"model saved in {output / 'model'}")


def _callbacks(config: DictConfig, circuit: Circuit | None, tokenizer: Any) -> list[pl.Callback]:
    """The callbacks of the config, with what only the run knows."""
    found = []
    for name, node in config.callbacks.items():
        if node is None:
            continue
        given: dict[str, Any] = {}
        if name == "progress" and not config.trainer.enable_progress_bar:
            continue
        if name == "preservation":
            if circuit is None or config.penalty.weight == 0:
                continue
            given = {
                "circuit": circuit,
                "probe": _probe(config.probe),
                "penalty": instantiate(config.penalty.loss),
                "tokenizer": tokenizer,
            }
        elif name == "monitor":
            if circuit is None:
                continue
            given = {"circuits": [circuit], "tokenizer": tokenizer}
        elif name == "capability":
            # The task's own validation data has its values under val/ already.
            given = {"datasets": evaluation_data(config.evals, tokenizer, config.seed)}
            if not given["datasets"]:
                continue
        # Not as arguments of `instantiate`, which would turn dataclasses into configs.
        found.append(instantiate(node, _partial_=True)(**given))
    return found


def _probe(config: DictConfig) -> Any:
    spec = OmegaConf.to_container(config, resolve=True)
    assert isinstance(spec, dict)
    return None if spec["_target_"] is None else spec


def _check_devices(trainer: DictConfig) -> None:
    cores = os.cpu_count() or 1
    devices = trainer.devices
    if trainer.accelerator == "cpu" and isinstance(devices, int) and devices > cores:
        raise ValueError(
            f"trainer.devices={devices} is more than this machine has: {cores} CPU cores"
        )


def _check_writable(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise PermissionError(f"no permission to write into {output}")
