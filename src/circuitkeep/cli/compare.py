"""``circuitkeep compare``: checkpoints side by side with their base model."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from circuitkeep.capture.models import has_tokenizer, load_tokenizer
from circuitkeep.circuits import Circuit, load_circuit
from circuitkeep.cli.application import config_directory
from circuitkeep.cli.settings import evaluation_data
from circuitkeep.compare.measure import compare
from circuitkeep.compare.terminal import print_report
from circuitkeep.compare.write import write_report


def run(config: DictConfig) -> None:
    """Measure, print one table, and write ``report.json`` and ``report.html``."""
    for key, example in (
        ("base", "base=DIRECTORY"),
        ("checkpoints", "checkpoints=[DIRECTORY,...] or checkpoints={name:DIRECTORY,...}"),
        ("circuits", "circuits=[FILE.yaml,...]"),
    ):
        if OmegaConf.is_missing(config, key):
            raise ValueError(f"{key} is not set: add {example}")
    circuits = [find_circuit(name) for name in config.circuits]
    tokenizer = _tokenizer(config)
    datasets = {}
    for name, data in evaluation_data(config.evals, tokenizer, config.seed).items():
        data.setup("validate")
        loader = data.val_dataloader()
        if not loader:
            raise ValueError(f"evals.datasets.{name} has no validation rows")
        datasets[name] = loader
    console = Console(stderr=True)
    with console.status("measuring") as status:
        report = compare(
            config.base,
            named(OmegaConf.to_container(config.checkpoints)),
            circuits,
            tokenizer,
            datasets,
            rows=config.rows,
            seed=config.probe_seed,
            command=shlex.join(["circuitkeep", "compare", *sys.argv[1:]]),
            progress=lambda name: status.update(f"measuring {name}"),
        )
    print_report(report)
    for path in write_report(report, config.output):
        print(path)


def find_circuit(name: str) -> Circuit:
    """A circuit file, or one that ships with circuitkeep by its name."""
    shipped = config_directory() / "circuit" / f"{name}.yaml"
    return load_circuit(shipped if shipped.is_file() and os.sep not in name else name)


def named(checkpoints: Any) -> dict[str, str]:
    """Names for checkpoints that come as a list: the part of their paths that differs."""
    if isinstance(checkpoints, Mapping):
        return {str(name): str(path) for name, path in checkpoints.items()}
    if not isinstance(checkpoints, list):
        raise ValueError(f"checkpoints must be a list or a mapping, got {checkpoints!r}")
    found: dict[str, str] = {}
    for path in map(str, checkpoints):
        parts = [part for part in Path(path).parts if part not in ("model", "checkpoints", "/")]
        name = next(
            (
                candidate
                for depth in range(1, len(parts) + 1)
                if (candidate := "/".join(parts[-depth:])) not in found
            ),
            path,
        )
        found[name] = path
    return found


def _tokenizer(config: DictConfig) -> Any:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if Path(config.base).is_dir() and not has_tokenizer(config.base):
        return None
    return load_tokenizer(config.base)
