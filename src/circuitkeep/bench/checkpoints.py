"""The suite ``compare``: does a comparison take more memory the more checkpoints it has?

Every comparison runs in a process of its own, on files on disk, by `circuitkeep.compare.measure`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from transformers import GPT2LMHeadModel

from circuitkeep.bench.gpt2 import gpt2_config
from circuitkeep.bench.machine import describe_machine
from circuitkeep.bench.race import spread
from circuitkeep.bench.suites import Findings, Progress, Suite
from circuitkeep.capture.models import save_model

WORKER = "circuitkeep.bench.checkpoints_worker"
NOISE = 0.02
"""Of a weight's own standard deviation: how far a checkpoint is from the base."""


@dataclass(frozen=True)
class Comparison:
    """One comparison, as its process measured it.

    Attributes:
        checkpoints: How many, the base not counted.
        peak_bytes: The most memory that the process had, files it had mapped included.
        seconds: Of each checkpoint: loading and measuring.
    """

    checkpoints: int
    peak_bytes: int
    seconds: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class CompareSuite(Suite):
    """Comparisons of few and many checkpoints of GPT-2 small's shape, with random weights.

    Attributes:
        checkpoints: Numbers of checkpoints; each is a comparison.
        distinct: Checkpoints that are written; a comparison of more takes them several times.
        rows: Held-out probe rows.
        layers, heads, d_model, vocab: The model's shape.
        seed: Of the weights.
        folder: Where they are written, and deleted in the end; the system's temporary one if None.

    Raises:
        ValueError: If a number is below 1.
    """

    checkpoints: Sequence[int] = (1, 5, 20)
    distinct: int = 20
    rows: int = 32
    layers: int = 12
    heads: int = 12
    d_model: int = 768
    vocab: int = 50_257
    seed: int = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if name != "seed"}
        for name, value in numbers.items():
            for one in value if isinstance(value, Sequence) else [value]:
                if isinstance(one, int) and one < 1:
                    raise ValueError(f"bench.{name} must be at least 1, got {one}")
        if not self.checkpoints:
            raise ValueError("bench.checkpoints is empty")

    def run(self, progress: Progress) -> Findings:
        """See `Suite.run`.

        Raises:
            ValueError: If `d_model` cannot be divided among the heads.
            RuntimeError: If a comparison fails.
        """
        config = gpt2_config(self.layers, self.heads, self.d_model, self.vocab)
        written = min(self.distinct, max(self.checkpoints))
        total = written + 1 + len(self.checkpoints)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            for number, path in enumerate(_write(Path(name), config, written, self.seed)):
                progress(f"writing {path.name}", number, total)
            found = []
            for number, checkpoints in enumerate(self.checkpoints):
                progress(f"comparing {checkpoints}", written + 1 + number, total)
                found.append(self._compare(Path(name), checkpoints, written))
        progress("done", total, total)
        return CompareFindings(found, self, written, describe_machine(torch.device("cpu")))

    def _compare(self, folder: Path, checkpoints: int, written: int) -> Comparison:
        settings = {
            "base": str(folder / "base"),
            "checkpoints": [str(folder / f"step{n % written}") for n in range(checkpoints)],
            "rows": self.rows,
            # As many heads as circuits tend to name, in the middle of the model.
            "layer": self.layers // 2,
            "heads": min(self.heads, 3),
        }
        done = subprocess.run(
            [sys.executable, "-m", WORKER, json.dumps(settings)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the comparison of {checkpoints} checkpoints failed: {last}")
        return Comparison(**json.loads(done.stdout.splitlines()[-1]))


def _write(folder: Path, config: Any, checkpoints: int, seed: int) -> Iterator[Path]:
    """The base, and checkpoints near it, one after the other; each is told before it is written."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        yield folder / "base"
        save_model(model, folder / "base")
        for number in range(checkpoints):
            yield folder / f"step{number}"
            with torch.no_grad():
                for weight in model.parameters():
                    # Of constant weights (norms, biases) the deviation is 0.
                    weight.add_(NOISE * weight.std(correction=0) * torch.randn_like(weight))
            save_model(model, folder / f"step{number}")


@dataclass(frozen=True)
class CompareFindings(Findings):
    """All comparisons, the one with the fewest checkpoints first."""

    comparisons: Sequence[Comparison]
    suite: CompareSuite
    written: int
    machine: Mapping[str, Any]

    def shown(self) -> list[RenderableType]:
        """See `Findings.shown`."""
        table = Table(title="\nComparing checkpoints", title_justify="left", box=None)
        for name in ("checkpoints", "peak MiB", "times the first", "s per checkpoint"):
            table.add_column(name, justify="right", no_wrap=True)
        first = self.comparisons[0].peak_bytes
        for one in self.comparisons:
            time = spread(one.seconds)
            table.add_row(
                str(one.checkpoints),
                f"{one.peak_bytes / 2**20:.0f}",
                f"{one.peak_bytes / first:.3f}",
                f"{time.median:.1f} [{time.least:.1f}, {time.most:.1f}]",
            )
        notes = [
            f"{self.written} checkpoints lie on disk; {self.suite.rows} probe rows of 32 tokens. "
            "Peak: the most memory that the process of a comparison had, files it had mapped "
            "included. Seconds: loading and measuring, median [least, most].",
            ", ".join(f"{key} {value}" for key, value in self.machine.items()),
        ]
        return [table, "", *notes]

    def content(self) -> dict[str, Any]:
        """See `Findings.content`."""
        return {
            "machine": dict(self.machine),
            "written": self.written,
            "comparisons": [asdict(one) for one in self.comparisons],
        }
