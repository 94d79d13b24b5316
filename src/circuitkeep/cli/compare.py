"""``circuitkeep compare``: checkpoints side by side with their base model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from circuitkeep.capture.models import has_tokenizer, load_tokenizer
from circuitkeep.cli.settings import evaluation_data, find_circuit
from circuitkeep.compare.measure import compare
from circuitkeep.compare.terminal import print_report
from circuitkeep.compare.write import write_report


def run(config: DictConfig) -> None:
    """Measure, print one table, and write ``report.json`` and ``report.html``."""
    names = [config.circuits] if isinstance(config.circuits, str) else config.circuits
    circuits = [find_circuit(name) for name in names]
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
            named(config.checkpoints),
            circuits,
            tokenizer,
            datasets,
            rows=config.rows,
            seed=config.probe_seed,
            command=_command(),
            progress=lambda name: status.update(f"measuring {name}"),
        )
    print_report(report)
    for path in write_report(report, config.output):
        print(path)


def named(checkpoints: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Names for checkpoints that come as a list: the part of their paths that differs."""
    if isinstance(checkpoints, Mapping):
        return {str(name): str(path) for name, path in checkpoints.items()}
    found: dict[str, str] = {}
    for path in [checkpoints] if isinstance(checkpoints, str) else map(str, checkpoints):
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


def _command() -> str:
    job = HydraConfig.get()
    return shlex.join(["circuitkeep", str(job.job.config_name), *job.overrides.task])


def _tokenizer(config: DictConfig) -> Any:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if Path(config.base).is_dir() and not has_tokenizer(config.base):
        return None
    return load_tokenizer(config.base)
