"""``circuitkeep compare``: checkpoints side by side with their base model."""

from __future__ import annotations

import glob
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from circuitkeep.callbacks.wandb_report import publish_report, report_logger
from circuitkeep.capture.models import has_tokenizer, load_tokenizer
from circuitkeep.cli.settings import evaluation_data, find_circuit, harness_of
from circuitkeep.compare.figures import check_figures, write_figures
from circuitkeep.compare.graphs import GraphQuestion
from circuitkeep.compare.measure import compare
from circuitkeep.compare.progress import progress_bar
from circuitkeep.compare.terminal import print_report
from circuitkeep.compare.trajectory import checkpoints_in
from circuitkeep.compare.write import write_report


def run(config: DictConfig) -> None:
    """Measure, print one table, and write ``report.json``, ``report.csv`` and ``report.html``."""
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
    checkpoints = named(config.checkpoints, config.trajectory)
    check_tokenizers(checkpoints, tokenizer)
    if config.figures is not None:
        check_figures(config.figures)
    graphs = _graphs(config.graphs)
    wandb = None if config.wandb is None else report_logger(config.wandb, config.output)
    with progress_bar(1 + len(checkpoints)) as progress:
        report = compare(
            config.base,
            checkpoints,
            circuits,
            tokenizer,
            datasets,
            rows=config.rows,
            seed=config.probe_seed,
            command=_command(),
            progress=progress,
            trajectory=config.trajectory,
            prompts=[config.prompts] if isinstance(config.prompts, str) else list(config.prompts),
            replicates=_plain(config.replicates),
            probes=_plain(config.transfer.probes),
            origins=_plain(config.transfer.trained_on),
            harness=harness_of(config.evals),
            graphs=graphs,
        )
    print_report(report)
    files = write_report(report, config.output)
    for path in files:
        print(path)
    if config.figures is not None:
        figures = write_figures(report, config.output, config.figures)
        print(f"{figures[0].parent}: {len(figures)} figures")
        files += figures
    if wandb is not None:
        publish_report(wandb, files, checkpoints)


def named(
    checkpoints: str | Sequence[str] | Mapping[str, str], trajectory: bool = False
) -> dict[str, str]:
    """Names for checkpoints that come as a list: the part of their paths that differs.

    A path may be a pattern (``runs/*/model``), a trajectory a folder: all the checkpoints in it.

    Raises:
        FileNotFoundError: If there is no folder of a trajectory.
        ValueError: If nothing fits a pattern, or a folder holds no checkpoint that tells a step.
    """
    if trajectory and isinstance(checkpoints, str) and not glob.has_magic(checkpoints):
        folder = Path(checkpoints).expanduser()
        if not folder.exists():
            raise FileNotFoundError(
                f"there is no folder of checkpoints at {checkpoints}; trajectory=true takes a "
                "run's folder, a list, or a pattern such as runs/a/checkpoints/*.ckpt"
            )
        if folder.is_dir():
            return checkpoints_in(folder)
    if isinstance(checkpoints, Mapping):
        return {str(name): str(path) for name, path in checkpoints.items()}
    found: dict[str, str] = {}
    given = [checkpoints] if isinstance(checkpoints, str) else map(str, checkpoints)
    for path in itertools.chain.from_iterable(map(_matching, given)):
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


def _matching(path: str) -> list[str]:
    """What fits a pattern, numbers in their order; or the path itself."""
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    found = glob.glob(str(Path(path).expanduser()))
    if not found:
        raise ValueError(f"no checkpoint fits {path!r}")
    # Texts and numbers in turn.
    return sorted(
        found, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)]
    )


def check_tokenizers(checkpoints: Mapping[str, str], tokenizer: Any) -> None:
    """Refuse checkpoints that come with a tokenizer by which tokens mean something else.

    Tokens that a fine-tuning added do no harm.

    Raises:
        ValueError: Naming the checkpoint, and a token.
    """
    if tokenizer is None:
        return
    base = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    for name, path in checkpoints.items():
        if not (Path(path).is_dir() and has_tokenizer(path)):
            continue
        own = load_tokenizer(path).get_vocab()
        other = next((token for token, number in base.items() if own.get(token) != number), None)
        if other is not None:
            raise ValueError(
                f"checkpoint {name!r} ({path}) has another tokenizer than the base model: "
                f"{other!r} is token {base[other]} of the base and {own.get(other)} here"
            )


def _graphs(config: DictConfig) -> GraphQuestion | None:
    if config.rows == 0:
        if config.transcoder is not None:
            raise ValueError("graphs.transcoder does nothing without graphs.rows: give a number")
        return None
    return GraphQuestion(config.rows, config.transcoder)


def _plain(config: DictConfig | None) -> Any:
    return None if config is None else OmegaConf.to_container(config, resolve=True)


def _command() -> str:
    job = HydraConfig.get()
    return shlex.join(["circuitkeep", str(job.job.config_name), *job.overrides.task])


def _tokenizer(config: DictConfig) -> Any:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    if Path(config.base).is_dir() and not has_tokenizer(config.base):
        return None
    return load_tokenizer(config.base)
