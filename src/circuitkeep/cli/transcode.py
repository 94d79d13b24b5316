"""``circuitkeep transcode train|evaluate``: sparse features that stand for a model's MLPs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

from circuitkeep.callbacks.progress import StepProgressBar
from circuitkeep.callbacks.resume import ExactResume
from circuitkeep.callbacks.wandb_views import finished_runs
from circuitkeep.capture import Backend, attach
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.cli.settings import construct
from circuitkeep.cli.terminal import print_wide, told
from circuitkeep.cli.train import build_trainer
from circuitkeep.files import replacing
from circuitkeep.tasks.transcoding import TranscoderTask
from circuitkeep.tasks.transcoding_data import ActivationData
from circuitkeep.tasks.transcoding_rows import token_rows
from circuitkeep.transcoders.harvest import run as run_once
from circuitkeep.transcoders.quality import Quality, measure_quality
from circuitkeep.transcoders.rows import TokenRows
from circuitkeep.transcoders.storage import about_transcoder, load_transcoder, save_transcoder

# What a resumed training may change: where and how it runs, not what comes of it.
_FREE = ("action", "transcoder", "logger", "trainer", "output", "hydra")


def run(config: DictConfig) -> None:
    """Train and measure a transcoder, or measure one that is there."""
    if config.action not in ("train", "evaluate"):
        raise ValueError(f"there is no transcode {config.action}; train or evaluate")
    if config.action == "train":
        _train(config)
    else:
        _evaluate(config)


def _train(config: DictConfig) -> None:
    output, started = Path(config.output), (time.perf_counter(), time.process_time())
    if config.trainer.resume is not None:
        raise ValueError(
            "transcode goes on by itself, given the same output; leave out trainer.resume"
        )
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model, tokenizer = construct(config.model)
    model.requires_grad_(False)
    backend = attach(model)
    fingerprint = fingerprint_model(model)
    settings = _settings(config) | {"fingerprint": fingerprint}
    _claim(output, settings)
    config.trainer.resume = str(_last(output)) if _last(output).is_file() else None
    bars = _Bars()
    data = _data(config, backend, tokenizer, bars)
    read, _ = run_once(backend, torch.zeros(1, 2, dtype=torch.long))
    task = _task(config, backend.n_layers, read.shape[-1])
    trainer = build_trainer(config, _callbacks(config))
    with finished_runs(trainer), bars:
        trainer.fit(task, datamodule=data, ckpt_path=config.trainer.resume, weights_only=True)
        if not trainer.is_global_zero:
            return
        transcoder = task.trained().to(backend.device)
        quality = measure_quality(
            backend,
            transcoder,
            *data.held_out,
            data.rows_at_once,
            data.skip_first,
            lambda done, total: bars("measuring", done, total),
        )
    spent = {
        "resumed": config.trainer.resume is not None,
        "wall_s": time.perf_counter() - started[0],
        "process_s": time.process_time() - started[1],
    }
    about = {"model": str(config.model.get("path") or model.name_or_path), **settings}
    save_transcoder(
        transcoder.cpu(), output / "transcoder", {**about, "quality": quality.summary()}
    )
    _write(output, {**about, **spent, "quality": quality.summary()}, quality)
    _print(quality)
    print(f"the transcoder is in {output / 'transcoder'}, all figures in {output / 'report.json'}")


def _evaluate(config: DictConfig) -> None:
    if config.transcoder is None:
        raise ValueError(
            "transcoder is not set: add transcoder=FOLDER, as `transcode train` wrote it"
        )
    folder = Path(config.transcoder)
    transcoder, about = load_transcoder(folder), about_transcoder(folder)
    model, tokenizer = construct(config.model)
    gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    backend = attach(model.to("cuda" if gpu else "cpu"))
    fingerprint = fingerprint_model(model)
    asked = config.data
    with told(Console(stderr=True), "drawing text") as tell:
        rows = token_rows(
            backend,
            tokenizer,
            asked.text,
            None if asked.text else asked.held_out_rows,
            asked.length,
            asked.text_seed + 1,
            tell,
        )
    last = TokenRows(*(values[-asked.held_out_rows :] for values in rows))
    with told(Console(stderr=True), "measuring") as tell:
        quality = measure_quality(
            backend,
            transcoder.to(backend.device),
            *last,
            asked.rows_at_once,
            asked.skip_first,
            tell,
        )
    path = str(config.model.get("path") or model.name_or_path)
    trained_on = about.get("fingerprint")
    report = {"transcoder": str(folder), "model": path, "fingerprint": fingerprint}
    report |= {"trained_on_this_model": trained_on == fingerprint, "text": asked.text}
    output = Path(config.output)
    _write(output, {**report, "quality": quality.summary()}, quality)
    _print(quality)
    if trained_on not in (None, fingerprint):
        print("The transcoder was trained on another model: its errors are of that too.")
    print(f"all figures are in {output / 'report.json'}")


def _settings(config: DictConfig) -> dict[str, Any]:
    """All that the trained transcoder depends on, but for the model's weights."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    kept = {str(name): value for name, value in content.items() if name not in _FREE}
    kept["model"] = {"dtype": kept["model"].get("dtype")}
    names = ("precision", "accumulate_grad_batches", "gradient_clip_val", "devices", "num_nodes")
    kept["trainer"] = {name: content["trainer"].get(name) for name in names}
    return {"training": kept}


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Note what is trained in a folder; refuse one in which something else is, or was.

    Raises:
        ValueError: Naming what differs.
    """
    path, finished = output / "settings.json", (output / "report.json").is_file()
    # One that ended before its first checkpoint left nothing to go on from, or to spoil.
    if finished or _last(output).is_file():
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        old, new = dict(_flat(before)), dict(_flat(settings))
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                what = name.removeprefix("training.")
                raise ValueError(
                    f"{output} holds a training with {what}={old.get(name)}, and this one has "
                    f"{new.get(name)}; choose another output"
                )
    if finished:
        raise ValueError(f"{output} holds the same training, finished; choose another output")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _last(output: Path) -> Path:
    """The checkpoint that a training goes on from."""
    return output / "checkpoints" / "last.ckpt"


def _flat(content: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in content.items():
        name = f"{before}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _data(config: DictConfig, backend: Backend, tokenizer: Any, bars: _Bars) -> ActivationData:
    settings: dict[str, Any] = {str(name): value for name, value in config.data.items()}
    check_arguments(ActivationData, settings)
    return ActivationData(
        backend, tokenizer, config.output, **settings, seed=config.seed, progress=bars
    )


def _task(config: DictConfig, n_layers: int, d_model: int) -> TranscoderTask:
    settings = OmegaConf.to_container(config.task, resolve=True)
    assert isinstance(settings, dict)
    settings["n_features"] = config.features
    for name in ("activation", "k", "cross_layer", "reads", "seed"):
        settings[name] = config[name]
    check_arguments(TranscoderTask, settings)  # type: ignore[arg-type]
    return TranscoderTask(n_layers, d_model, **settings)  # type: ignore[arg-type]


def _callbacks(config: DictConfig) -> list[pl.Callback]:
    saving = ModelCheckpoint(
        Path(config.output) / "checkpoints",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=config.checkpoint_every,
    )
    shown = config.trainer.enable_progress_bar
    return [ExactResume(), saving, *([StepProgressBar(leave=False)] if shown else [])]


def _write(output: Path, report: Mapping[str, Any], quality: Quality) -> None:
    with replacing(output / "density.safetensors") as temporary:
        save_file({"density": quality.density}, temporary)
    with replacing(output / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")


def _print(quality: Quality) -> None:
    table = Table(box=None)
    for name in ("layer", "explained variance", "active per token", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    found = quality.summary()
    layers = zip(quality.explained_variance, quality.active, quality.dead, strict=True)
    means = [found[f"mean_{name}"] for name in ("explained_variance", "active_per_token", "dead")]
    for name, (explained, active, dead) in [*enumerate(layers), ("mean", means)]:
        table.add_row(str(name), f"{explained:.3f}", f"{active:.1f}", f"{dead:.1%}")
    print_wide(table)
    print(
        f"loss {quality.loss_nats:.3f} nats per token; all MLPs replaced "
        f"{quality.replaced_nats:.3f}, mean-ablated {quality.mean_ablated_nats:.3f}, zero-ablated "
        f"{quality.zero_ablated_nats:.3f}: {quality.recovered:.1%} of the mean ablation's loss is "
        f"recovered, {quality.recovered_of_zero:.1%} of the zero ablation's ({quality.tokens} "
        "tokens)"
    )


class _Bars:
    """One bar at a time on a terminal, for what comes before and after the training's own."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self.console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        if self._bar is None:
            self._bar = Progress(console=self.console, transient=True)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)
        if done >= total:
            self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
