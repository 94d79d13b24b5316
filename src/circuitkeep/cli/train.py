"""``circuitkeep train``: fine-tune a model, guarding a circuit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from omegaconf import DictConfig, OmegaConf

from circuitkeep.callbacks import CapabilityEvals, CircuitGate, CircuitMonitor
from circuitkeep.callbacks.gate import EXIT_CODE
from circuitkeep.callbacks.wandb_logger import run_id_of
from circuitkeep.callbacks.wandb_views import finished_runs, log_model
from circuitkeep.capture import attach
from circuitkeep.capture.find import is_bridge
from circuitkeep.capture.models import save_model
from circuitkeep.circuits import Circuit, did_you_mean
from circuitkeep.cli.settings import (
    circuit_of,
    construct,
    data_module,
    evaluation_data,
    harness_of,
)
from circuitkeep.probes import build_probe


def run(config: DictConfig) -> None:
    """Train, then save the model under ``<output>/model``; exits with 3 if a gate ended it."""
    trainer = train(config)
    ended = [one for one in _gates(trainer) if one.ended]
    if ended and trainer.is_global_zero:
        found = " ".join(why for gate in ended for why in gate.tripped.values())
        print(f"circuitkeep: a gate ended the training: {found}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def train(config: DictConfig) -> pl.Trainer:
    """As `run`; the trainer holds what was measured."""
    resume = config.trainer.resume
    if resume is not None and not Path(resume).is_file():
        raise FileNotFoundError(f"trainer.resume: there is no checkpoint at {resume}")
    output = Path(config.output)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    circuit = circuit_of(config.circuit)
    model, tokenizer = construct(config.model)
    if is_bridge(model):
        raise ValueError(
            "model=bridge is for scan: a TransformerBridge has no model directory to save; train "
            "by model=hf, or guard the bridge in a LightningModule of your own"
        )
    if circuit is not None:
        _check_circuit(circuit, model, config)
    data = data_module(config.data, tokenizer)
    reads_text = {"tokenizer": tokenizer} if "tokenizer" in config.task else {}
    task = construct(config.task, model=model, **reads_text)
    held = None if circuit is None else _controlled(circuit, model, config)
    callbacks = _rivals(config, held, tokenizer) + _callbacks(config, circuit, held, tokenizer)
    trainer = build_trainer(config, callbacks)
    with finished_runs(trainer):
        _fit(trainer, task, data, resume)
        if trainer.is_global_zero:
            save_model(model, output / "model", tokenizer)
            log_model(trainer, output / "model")
            print(f"model saved in {output / 'model'}")
        if config.validate_at_end:
            trainer.validate(task, datamodule=data, verbose=False)
    return trainer


def final_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What was measured last: by the task, the monitor and the capability evaluations."""
    found = {str(name): float(value) for name, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, CircuitMonitor) and callback.history:
            found |= {name: value for name, value in callback.history[-1].items() if name != "step"}
        elif isinstance(callback, CapabilityEvals):
            for name, values in callback.latest.items():
                found |= {f"capability/{name}/{quantity}": x for quantity, x in values.items()}
    return found


def _gates(trainer: pl.Trainer) -> list[CircuitGate]:
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [one for one in callbacks if isinstance(one, CircuitGate)]


def guards(config: DictConfig) -> bool:
    """Whether the penalty has a circuit to hold and a weight to hold it with."""
    nothing = config.penalty.weight == 0 and config.penalty.constraint is None
    known = "path" not in config.circuit or config.circuit.path is not None
    return known and not nothing and config.callbacks.get("preservation") is not None


def build_trainer(config: DictConfig, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The trainer and the loggers that the config asks for."""
    settings = {key: value for key, value in config.trainer.items() if key != "resume"}
    asked = f"trainer.accelerator={settings['accelerator']}, trainer.devices={settings['devices']}"
    try:
        trainer = construct(
            settings,
            logger=[construct(node) for node in _loggers(config)],
            callbacks=callbacks,
            default_root_dir=config.output,
        )
    except MisconfigurationException as error:
        raise ValueError(f"the trainer refuses its settings ({asked} ...): {error}") from error
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise ValueError(f"{asked} is more than this machine has: {cores} CPU cores")
    for logger in trainer.loggers:
        try:
            _ = logger.experiment
        except Exception as error:  # every logger has its own kinds
            raise ValueError(f"{type(logger).__name__} cannot start: {error}") from error
    return trainer


def _loggers(config: DictConfig) -> list[Any]:
    """The loggers; a run that is resumed goes on in the same run of W&B."""
    resume, run = config.trainer.resume, config.logger.get("wandb")
    if resume is not None and run is not None and run.id is None:
        run.id = run_id_of(Path(resume).absolute().parents[1])
    return list(config.logger.values())


def _fit(trainer: pl.Trainer, task: Any, data: Any, resume: str | None) -> None:
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"trainer.resume={resume} is of another model: {first}") from error


def _check_circuit(circuit: Circuit, model: Any, config: DictConfig) -> None:
    """Refuse a circuit that does not fit before the data are read."""
    backend = attach(model)
    circuit.check_model(backend.n_layers, backend.n_heads)
    for probe in (circuit.probe, _probe(config.probe)):
        if probe is not None:
            circuit.check_labels(build_probe(probe).labels)


def _controlled(circuit: Circuit, model: Any, config: DictConfig) -> Circuit:
    """The circuit that is held: its own heads, or those of a control."""
    kind, seed = config.control.kind, config.control.seed
    if kind == "none":
        return circuit
    backend = attach(model)
    if kind == "random_heads":
        return circuit.with_random_heads(backend.n_heads, seed)
    if kind == "all_heads":
        return circuit.with_all_heads(backend.n_layers, backend.n_heads)
    known = ("none", "random_heads", "all_heads")
    raise ValueError(f"control.kind={kind!r}" + did_you_mean(str(kind), known))


def _rivals(config: DictConfig, held: Circuit | None, tokenizer: Any) -> list[pl.Callback]:
    """What the group ``rival`` names. First of all callbacks: the others look at what it did."""
    if config.rival._target_ is None:
        return []
    given = {"circuit": held, "probe": _probe(config.probe), "tokenizer": tokenizer}
    given = {name: value for name, value in given.items() if name in config.rival}
    if "circuit" in given and held is None:
        raise ValueError("this rival needs a circuit: name one by circuit=FILE.yaml")
    return [construct(config.rival, **given)]


def _callbacks(
    config: DictConfig, circuit: Circuit | None, held: Circuit | None, tokenizer: Any
) -> list[pl.Callback]:
    """The callbacks of the config, with what only the run knows; `held` is what is guarded."""
    found = []
    for name, node in config.callbacks.items():
        if node is None:
            continue
        given: dict[str, Any] = {}
        if name == "progress" and not config.trainer.enable_progress_bar:
            continue
        if name == "preservation":
            if not guards(config):
                continue
            given = {
                "circuit": held,
                "probe": _probe(config.probe),
                "penalty": instantiate(config.penalty.loss),
                "tokenizer": tokenizer,
            }
        elif name == "monitor":
            if circuit is None:
                continue
            given = {"circuits": [circuit], "tokenizer": tokenizer}
        elif name == "gate":
            if circuit is None or node.action is None:
                continue
        elif name == "capability":
            # The task's own validation data has its values under val/ already.
            datasets = evaluation_data(config.evals, tokenizer, config.seed)
            harness = harness_of(config.evals)
            if not datasets and harness is None:
                continue
            given = {"datasets": datasets, "harness": harness, "tokenizer": tokenizer}
        found.append(construct(node, **given))
    return found


def _probe(config: DictConfig) -> Any:
    spec = OmegaConf.to_container(config, resolve=True)
    assert isinstance(spec, dict)
    return None if spec["_target_"] is None else spec
