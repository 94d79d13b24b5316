"""Tasks of lm-evaluation-harness by name, on the model at hand: no second copy of it is made."""

from __future__ import annotations

import copy
import difflib
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from circuitkeep.capture import find_model, probe_mode
from circuitkeep.capture.find import is_bridge
from circuitkeep.capture.fingerprints import fingerprint_model, fingerprint_tokenizer
from circuitkeep.evals.harness_quiet import quiet

SEED = 1234
"""lm-evaluation-harness' own: of few-shot examples, and of whatever a task draws."""
BOOTSTRAP_DRAWS = 1000
"""For the standard error of metrics that are no mean (perplexity, F1, BLEU ...)."""


@dataclass(frozen=True)
class Harness:
    """Tasks, and how they are asked; the figures are those of ``lm_eval.evaluate``.

    Attributes:
        tasks: Names of tasks, groups or tags.
        include_path: Folders with YAML files of one's own tasks, beside those that come with
            lm-evaluation-harness. Data files that such a file names are looked for beside it.
        num_fewshot: Examples before each question, instead of each task's own number; a task that
            fixes 0 keeps 0.
        limit: Of each task the first so many questions, or this share of them if below 1.
        batch_size: Prompts per forward pass.
        cache_dir: Where answers are kept for checkpoints that are asked again; None for nowhere.

    Raises:
        ValueError: If a number is out of range.
    """

    tasks: Sequence[str] | str
    include_path: Sequence[str] | str | None = None
    num_fewshot: int | None = None
    limit: int | float | None = None
    batch_size: int = 16
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("num_fewshot", self.num_fewshot, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"evals.harness.{name} must be at least {least}, got {value}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"evals.harness.limit must be above 0, or null; got {self.limit}")

    @property
    def names(self) -> list[str]:
        """What `tasks` lists."""
        return [self.tasks] if isinstance(self.tasks, str) else list(self.tasks)

    def prepare(self, tokenizer: Any) -> None:
        """Load the tasks and their data, once, so that a mistake shows before any training.

        Raises:
            ValueError: If lm-evaluation-harness is missing, knows no such task, or cannot read
                its data; or if the tokenizer is missing, or lacks tokens that the tasks need.
        """
        _check_tokenizer(tokenizer, self._loaded["tasks"].values())

    def evaluate(
        self, model: nn.Module, tokenizer: Any, *, keep: bool = False
    ) -> dict[str, dict[str, float]]:
        """Ask `model`, as it is now.

        Training flags, random states and the tokenizer are left as they were found; no gradient
        is kept. Where processes share the weights out, all of them must call this.

        Args:
            model: A Hugging Face model, a bridge around one, or a module that holds one.
            tokenizer: The model's.
            keep: Look answers up in ``cache_dir``, and keep those that are new: by the
                fingerprints of model and tokenizer, and by the very prompt.

        Returns:
            Task -> metric -> value, with its standard error under ``METRIC_stderr`` where there is
            one. A metric behind a filter is ``METRIC_FILTER``. Of a group with figures of its own
            the parts are left out.

        Raises:
            ValueError: As `prepare`.
        """
        self.prepare(tokenizer)
        from lm_eval import evaluator
        from lm_eval.models import huggingface

        # Their hints say less than they take.
        evaluate: Any = evaluator.evaluate
        wrapped: Any = huggingface.HFLM
        loaded, model = self._loaded, find_model(model)
        for task in loaded["tasks"].values():
            # The examples of an evaluation would go on where the last one's ended.
            task.set_fewshot_seed(seed=SEED)
        live = _Live(model)
        file = self._file(model, tokenizer) if keep and self.cache_dir is not None else None
        with probe_mode(model), _seeded(), quiet(), torch.no_grad():
            asked = wrapped(
                pretrained=live,
                # A copy, because a tokenizer without a padding token would be given one.
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=self.batch_size,
                mixed_precision_dtype=live.autocast,
            )
            with nullcontext(asked) if file is None else _remembering(asked, file) as lm:
                results = evaluate(
                    lm=lm,
                    task_dict=loaded,
                    limit=self.limit,
                    bootstrap_iters=BOOTSTRAP_DRAWS,
                    log_samples=False,
                )
        return figures(results)

    @cached_property
    def _loaded(self) -> Any:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise ValueError(
                "evals.harness.tasks needs lm-evaluation-harness: "
                "pip install 'circuitkeep[lm-eval]'"
            ) from error
        given = [self.include_path] if isinstance(self.include_path, str) else self.include_path
        folders = [Path(folder).expanduser().absolute() for folder in given or ()]
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"evals.harness.include_path: there is no folder {folder}")
        with quiet(), _seeded():
            # Those that come with it are 14,000 tasks, whose files take a while to read.
            manager = TaskManager(include_path=[*folders], include_defaults=False)
            if not all(_is_task(manager.task_index.get(name)) for name in self.names):
                manager = TaskManager(include_path=[*folders])
            specs = [_spec(manager.task_index, name) for name in self.names]
            tasks: dict[str, Any] = {}
            groups: dict[str, Any] = {}
            for name, spec in zip(self.names, specs, strict=True):
                found = _load(manager, name, spec)
                tasks |= found["tasks"]
                groups |= {key: group for key, group in found["groups"].items() if key != _OWN}
        for task in tasks.values():
            own = task.get_config("num_fewshot")
            if own is None or (own != 0 and self.num_fewshot is not None):
                task.set_config("num_fewshot", self.num_fewshot or 0)
        return {"tasks": tasks, "groups": groups}

    def _file(self, model: nn.Module, tokenizer: Any) -> Path:
        """Of the answers of this very checkpoint."""
        parts = (fingerprint_model(model), fingerprint_tokenizer(tokenizer), version("lm_eval"))
        name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
        return Path(str(self.cache_dir)).expanduser() / f"{name}.sqlite"


_OWN = "circuitkeep"
"""Name of a group around a task that is given other settings; nothing is said of it."""


class _Live:
    """What lm-evaluation-harness asks of a model that is there.

    No `nn.Module`: of one it would set the flags, and tie the weights once more, which the shards
    of FSDP do not survive.
    """

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model.original_model if is_bridge(model) else model
        self._model, self.config, self.generate = inner, inner.config, inner.generate
        self.device = next(model.parameters()).device
        kind = self.device.type
        # Within a trainer's precision, as the training itself.
        self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def __call__(self, tokens: Tensor) -> Any:
        return self._model(input_ids=tokens)


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers in what ``lm_eval.evaluate`` returns; see `Harness.evaluate`."""
    found: dict[str, dict[str, float]] = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            # "N/A" stands where there is no standard error.
            if comma and isinstance(value, Real):
                name = metric.removesuffix("_stderr")
                name += "" if kind == "none" else f"_{kind}"
                name += "_stderr" if metric.endswith("_stderr") else ""
                found.setdefault(task, {})[name] = float(value)
    parts = {
        part
        for group, children in results.get("group_subtasks", {}).items()
        if group in found
        for part in children
    }
    return {task: values for task, values in found.items() if task not in parts}


def _is_task(entry: Any) -> bool:
    """Whether it is one task, and so in need of no other."""
    return entry is not None and entry.kind.name in ("TASK", "PY_TASK")


def _spec(index: Mapping[str, Any], name: str) -> Any:
    """How the task is asked for: by its name, or with the data that lie beside its file."""
    if name not in index:
        near = difflib.get_close_matches(name, index, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `lm-eval ls tasks` lists them"
        raise ValueError(f"evals.harness.tasks: there is no task {name!r}" + hint)
    entry = index[name]
    settings = (entry.cfg or {}).get("dataset_kwargs") or {}
    if entry.yaml_path is None or not isinstance(settings, Mapping) or "data_files" not in settings:
        return name
    files = _beside(settings["data_files"], entry.yaml_path.parent)
    return {
        "group": _OWN,
        "task": [{"task": name, "dataset_kwargs": {**settings, "data_files": files}}],
    }


def _beside(files: Any, folder: Path) -> Any:
    """Names of files in `folder` as paths; other names, which may be on the hub, as they are."""
    if isinstance(files, Mapping):
        return {split: _beside(names, folder) for split, names in files.items()}
    if isinstance(files, list):
        return [_beside(name, folder) for name in files]
    return str(folder / files) if (folder / files).is_file() else files


def _load(manager: Any, name: str, spec: Any) -> Any:
    try:
        return manager.load([spec])
    # Whatever a task's own code, its file or its data may raise.
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ValueError(
            f"evals.harness.tasks: the task {name!r} cannot be loaded "
            f"({type(error).__name__}: {first.strip()}); its data must be on this machine, or "
            "within reach on the network"
        ) from error


def _check_tokenizer(tokenizer: Any, tasks: Any) -> None:
    if tokenizer is None:
        raise ValueError(
            "evals.harness.tasks: the tasks are text, and the model has no tokenizer; name one by "
            "model.tokenizer=PATH (tokenizer=PATH for compare)"
        )
    generating = [task.task_name for task in tasks if task.OUTPUT_TYPE == "generate_until"]
    if tokenizer.eos_token_id is None and (generating or tokenizer.bos_token_id is None):
        what = f"the task {generating[0]!r}" if generating else "lm-evaluation-harness"
        raise ValueError(f"evals.harness.tasks: {what} needs a tokenizer with an EOS token")


@contextmanager
def _seeded() -> Iterator[None]:
    """All random states set, and put back; those of GPUs are put back by `probe_mode`."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def _remembering(lm: Any, file: Path) -> Iterator[Any]:
    """lm-evaluation-harness' own cache around a model: only prompts not in `file` are asked."""
    from lm_eval.api.model import CachingLM

    file.parent.mkdir(parents=True, exist_ok=True)
    remembering = CachingLM(lm, str(file))
    try:
        yield remembering
    finally:
        remembering.dbdict.close()
