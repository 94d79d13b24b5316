"""`circuitkeep bench strategies`: is the gradient right under every way to train?

Every cell is a training in one process or two (gloo), whose gradients before each optimizer step,
gathered whole, are compared with plain torch in one process on the joined batch plus the penalty
on all probe rows.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from circuitkeep.bench.strategies_cells import (
    MODELS,
    SETTINGS,
    STRATEGIES,
    Cell,
    Outcome,
)
from circuitkeep.bench.strategies_measure import prepare_references
from circuitkeep.bench.strategies_table import Table
from circuitkeep.bench.suites import Progress, Suite

_PATIENCE_S = 300.0


@dataclass(frozen=True)
class StrategiesSuite(Suite):
    """Which cells are measured; all if None.

    Attributes:
        models: See `circuitkeep.bench.strategies_cells.MODELS`.
        settings: Rows of the table, by name.
        strategies: Columns, by name.

    Raises:
        ValueError: For a name that there is not.
    """

    models: Sequence[str] | None = None
    settings: Sequence[str] | None = None
    strategies: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.cells()

    def cells(self) -> list[Cell]:
        """Every combination that exists, in the order of the table."""
        return all_cells(self.models or MODELS, self.settings, self.strategies)

    def run(self, progress: Progress) -> Table:
        """Measure all cells."""
        cells, done = self.cells(), itertools.count(1)

        def count(outcome: Outcome) -> None:
            cell = outcome.cell
            progress(f"{cell.model}, {cell.strategy}, {cell.setting}", next(done), len(cells))

        return Table(measure_strategies(cells, count))


def all_cells(
    models: Sequence[str] = MODELS,
    settings: Sequence[str] | None = None,
    strategies: Sequence[str] | None = None,
) -> list[Cell]:
    """Every combination.

    Raises:
        ValueError: For a name that there is not.
    """
    for asked, known in ((models, MODELS), (settings, SETTINGS), (strategies, STRATEGIES)):
        for name in asked or ():
            if name not in known:
                raise ValueError(f"{name!r}: choose among {', '.join(map(repr, known))}")
    return [
        Cell(model, setting, strategy)
        for model in models
        for setting in settings or SETTINGS
        for strategy in strategies or STRATEGIES
        if Cell(model, setting, strategy).exists
    ]


def measure_strategies(
    cells: Sequence[Cell], tell: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Measure `cells`, in processes of their own; a cell that hangs is ended and counts as failed.

    Args:
        cells: Which.
        tell: Called with every outcome as it comes.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_references(cells, folder / "references")
        for processes in sorted(set(STRATEGIES.values())):
            left = [cell for cell in cells if STRATEGIES[cell.strategy] == processes]
            while left:
                found = _run(left, processes, folder, tell)
                outcomes += found
                left = left[len(found) :]
    return outcomes


def _run(
    cells: Sequence[Cell], processes: int, folder: Path, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Outcomes of the first cells, up to all of them or to one that broke its processes."""
    task, results = folder / "cells.json", folder / "outcomes.jsonl"
    task.write_text(json.dumps([asdict(cell) for cell in cells]), encoding="utf-8")
    results.write_text("", encoding="utf-8")
    started = start_workers("circuitkeep.bench.strategies_worker", folder, processes)
    outcomes: list[Outcome] = []
    heard = time.monotonic()
    try:
        while True:
            over = [process.poll() is not None for process in started]
            whole = results.read_text(encoding="utf-8").rpartition("\n")[0]
            for line in whole.splitlines()[len(outcomes) :]:
                content = json.loads(line)
                outcomes.append(Outcome(**{**content, "cell": Cell(**content["cell"])}))
                tell(outcomes[-1])
                heard = time.monotonic()
            if len(outcomes) == len(cells) and all(over):
                return outcomes
            if any(over) or time.monotonic() - heard > _PATIENCE_S:
                break
            time.sleep(0.1)
        if len(outcomes) < len(cells):
            last = (folder / "stderr-0.txt").read_text(errors="replace").strip().splitlines()
            what = "ended" if any(over) else f"hung for {_PATIENCE_S:.0f} s"
            reason = f"a process {what}: {last[-1] if last else ''}"
            outcomes.append(Outcome(cells[len(outcomes)], "failed", message=reason))
            tell(outcomes[-1])
        return outcomes
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def start_workers(module: str, folder: Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """Run `module` in processes that know each other; each is given `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_start(module, folder, rank, processes, port) for rank in range(processes)]


def _start(
    module: str, folder: Path, rank: int, processes: int, port: int
) -> subprocess.Popen[bytes]:
    with (folder / f"stderr-{rank}.txt").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(processes),
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
