"""The jobs of ``circuitkeep train -m``: a folder each, resumed where they broke off, run once."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console
from torch import distributed

from circuitkeep.circuits import did_you_mean
from circuitkeep.cli.mistakes import check_complete, sentence
from circuitkeep.cli.surroundings import calm, mendable
from circuitkeep.cli.train import final_metrics, guards, train
from circuitkeep.sweeps import journal
from circuitkeep.sweeps.record import (
    RunRecord,
    differences,
    fingerprint,
    read_record,
    run_name,
    swept_values,
    write_record,
)

CONFIG = "config.yaml"
LOCK = ".lock"
_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Where a run writes, how it goes on, and what is asked of it: nothing that changes it.
_APART = {"output": "OUTPUT", "objective": [], "validate_at_end": True, "trainer.resume": None}


class Busy(Exception):
    """Another sweep is at this run."""


@dataclass(frozen=True)
class Jobs:
    """What a sweep calls for each of its jobs, in this process or another.

    Attributes:
        sweep: Which call of the command this is.
        keys: What the sweep varies, as in ``penalty.weight``; runs are named by it and the seed.
        command: How the command was called.
    """

    sweep: str
    keys: tuple[str, ...]
    command: str

    def __call__(self, config: DictConfig) -> tuple[float, ...] | None:
        """Run a job, unless that was done; what goes wrong is noted and stops no other job.

        Returns:
            The final metrics that ``objective`` names; None if one is missing and the sweeper
            does not ask for them.

        Raises:
            Exception: Where the sweeper wants a value, and the job has none to give.
        """
        hydra = HydraConfig.get()
        overrides = [str(override) for override in hydra.overrides.task]
        # A config may name more to vary than the command line does.
        swept = swept_values(overrides, [*self.keys, *(hydra.sweeper.get("params") or ())])
        if not any(key == "seed" for key in swept):
            swept["seed"] = str(config.seed)
        sweep_folder = Path(hydra.sweep.dir).absolute()
        folder = Path(hydra.runtime.output_dir) / run_name(swept)
        asked = hydra.sweeper._target_ != _BASIC
        run = folder.relative_to(sweep_folder).as_posix()
        began = time.time()

        def tell(event: str, **more: Any) -> None:
            journal.note(sweep_folder, self.sweep, run, event, **more)

        try:
            with calm():
                metrics = self._run(config, folder, swept, overrides, tell, wait=asked)
                return _objective(config, metrics) if asked else None
        except Busy:
            tell("busy")
        except mendable() as error:
            tell("failed", error=sentence(error), mistake=True, seconds=time.time() - began)
            print(f"circuitkeep: {run}: {sentence(error)}", file=sys.stderr)
            if asked:
                raise
        except Exception as error:
            told = f"{type(error).__name__}: {sentence(error)}"
            tell("failed", error=told, seconds=time.time() - began)
            traceback.print_exc()
            if asked:
                raise
        return None

    def _run(
        self,
        config: DictConfig,
        folder: Path,
        swept: dict[str, str],
        overrides: list[str],
        tell: Callable[..., None],
        wait: bool,
    ) -> dict[str, float]:
        folder.mkdir(parents=True, exist_ok=True)
        # The operating system frees it when the process dies, however it dies.
        lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise Busy from None
        try:
            check_complete(config)
            config.output = str(folder)
            content = comparable(config)
            before = read_record(folder)
            _check_same(folder, before, content)
            if before is not None and before.status == "finished":
                tell("skipped")
                return dict(before.metrics)
            record = before or RunRecord(
                fingerprint=fingerprint(content),
                group=fingerprint(comparable(config, {"seed": None})),
                seed=int(config.seed),
                swept=swept,
                overrides=tuple(overrides),
                unregularized=not guards(config) and config.rival._target_ is None,
                status="running",
                started=_now(),
                versions={name: version(name) for name in ("circuitkeep", "torch", "transformers")},
            )
            return self._train(config, folder, record, tell)
        finally:
            lock.release()

    def _train(
        self, config: DictConfig, folder: Path, record: RunRecord, tell: Callable[..., None]
    ) -> dict[str, float]:
        began = time.time()
        if not (folder / CONFIG).is_file():
            OmegaConf.save(config, folder / CONFIG)
        last = folder / "checkpoints" / "last.ckpt"
        if last.is_file():
            config.trainer.resume = str(last)
        config.validate_at_end = True
        write_record(folder, replace(record, status="running", error=""))
        tell("resumed" if last.is_file() else "started")
        self._as_one_run(config, record.overrides)
        environment = dict(os.environ)
        try:
            metrics = final_metrics(train(config))
        except Exception as error:
            seconds = record.seconds + time.time() - began
            failed = replace(record, status="failed", error=sentence(error), ended=_now())
            write_record(folder, replace(failed, seconds=seconds))
            raise
        finally:
            # Lightning leaves behind where the processes of this run meet, and that they did.
            os.environ.clear()
            os.environ.update(environment)
            if distributed.is_initialized():
                distributed.destroy_process_group()
        seconds = time.time() - began
        done = replace(record, status="finished", error="", ended=_now(), metrics=metrics)
        write_record(folder, replace(done, seconds=record.seconds + seconds))
        tell("finished", seconds=seconds)
        return metrics

    def _as_one_run(self, config: DictConfig, overrides: Iterable[str]) -> None:
        """Lightning starts processes for further devices with the command line: that of this run.

        It adds Hydra's run folder, which is ``output``.
        """
        settings = {"output": config.output, "trainer.resume": config.trainer.resume or ""}
        typed = [f"{key}='{value}'" for key, value in settings.items() if value]
        sys.argv = [self.command, "train", *overrides, *typed, "validate_at_end=true"]
        # Typed as Hydra's own part, it is the whole config.
        whole: Any = HydraConfig.instance().cfg
        with read_write(whole), open_dict(whole):
            whole.output = config.output


class Ending(Callback):
    """Tells how the jobs of a sweep ended; the command's exit code follows from it.

    Args:
        sweep: Which call of the command this is.
    """

    def __init__(self, sweep: str) -> None:
        self.sweep = sweep

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; Hydra calls this in the process that the user started."""
        ended = journal.outcomes(journal.read(Path(config.hydra.sweep.dir), self.sweep))
        Console().print(journal.render_table(ended))
        if code := journal.exit_code(ended):
            raise SystemExit(code)


def swept_keys(overrides: Sequence[str]) -> tuple[str, ...]:
    """What a command line varies: keys with several values, or a range of them.

    Raises:
        OverrideParseException: If an override cannot be read.
    """
    found = []
    for override in OverridesParser.create().parse_overrides(
        [text for text in overrides if not text.startswith("-")]
    ):
        if override.is_sweep_override():
            found.append(str(override.input_line).lstrip("+").partition("=")[0])
    return tuple(found)


def comparable(config: DictConfig, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved config without what does not change the run, and with `changes` by key."""
    copy = OmegaConf.create(OmegaConf.to_container(config))
    assert isinstance(copy, DictConfig)
    for key, value in {**_APART, **(changes or {})}.items():
        OmegaConf.update(copy, key, value)
    content = OmegaConf.to_container(copy, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _check_same(folder: Path, record: RunRecord | None, content: Mapping[str, Any]) -> None:
    if record is None:
        if (folder / "checkpoints").exists() or (folder / "model").exists():
            raise ValueError(
                f"{folder} holds a run that is of no sweep; choose another output=DIRECTORY"
            )
        return
    if record.fingerprint == fingerprint(content):
        return
    changed = ""
    if (folder / CONFIG).is_file():
        saved = OmegaConf.load(folder / CONFIG)
        assert isinstance(saved, DictConfig)
        found = list(differences(comparable(saved), content))
        changed = "; ".join(f"{key}={before}, now {now}" for key, before, now in found[:3])
        changed = f" ({changed}{' ...' if len(found) > 3 else ''})"
    raise ValueError(
        f"{folder} holds a run of another config{changed}: choose another output=DIRECTORY, or "
        "delete that folder"
    )


def _objective(config: DictConfig, metrics: Mapping[str, float]) -> tuple[float, ...]:
    """The metrics that ``objective`` names, by their whole names or their ends."""
    found = []
    for name in config.objective:
        values = [metrics[key] for key in metrics if f"/{key}".endswith(f"/{name}")]
        if len(values) != 1:
            what = "fits several" if values else "is none"
            raise ValueError(
                f"objective: {name!r} {what} of the run's final metrics"
                + did_you_mean(str(name), list(metrics))
            )
        found.append(values[0])
    return tuple(found)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
