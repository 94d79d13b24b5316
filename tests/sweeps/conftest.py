"""Runs of a sweep as records and rows, without any training."""

from pathlib import Path

import pytest
import torch

from circuitkeep.compare.paired import CircuitRows
from circuitkeep.compare.report import CircuitDescription
from circuitkeep.sweeps.analyse import analyse
from circuitkeep.sweeps.collect import Run, grouped
from circuitkeep.sweeps.record import RunRecord
from circuitkeep.sweeps.report import SweepReport

ROWS = 40


@pytest.fixture
def make_run():
    def make(weight, seed, loss, folder=Path("sweep")):
        swept = {"penalty.weight": weight, "seed": str(seed)}
        name = f"w{weight}s{seed}"
        record = RunRecord(
            fingerprint=name,
            group=weight,
            seed=seed,
            swept=swept,
            overrides=(),
            unregularized=weight == "0",
            status="finished",
            started="",
            metrics={"val/loss_nats": loss, "capability/wiki/loss_nats": loss + 1},
        )
        return Run(name, folder / name, record)

    return make


@pytest.fixture
def make_rows():
    """Rows whose mean is a known share of the base's: the base's rows times it, with noise."""

    def make(share, seed=0, noise=0.02):
        generator = torch.Generator().manual_seed(seed)
        base = 1 + torch.arange(ROWS) / ROWS
        rows = share * base
        if noise:
            drawn = noise * torch.randn(ROWS, generator=generator)
            rows = rows + drawn - drawn.mean()
        return CircuitRows({"induction": rows, "previous-token": rows / 2}, 2 * rows, rows)

    return make


@pytest.fixture
def sweep(make_run, make_rows):
    """Runs, the base's rows and theirs: three seeds of no guard, a good and a bad one."""
    # Weight -> behaviour kept and loss: 10 costs more than 1 and keeps less.
    settings = {"10": (0.6, 1.3), "0": (0.3, 1.0), "1": (0.8, 1.1)}
    runs, measured = [], {}
    for weight, (share, loss) in settings.items():
        for seed in range(3):
            run = make_run(weight, seed, loss + 0.01 * seed)
            runs.append(run)
            measured[run.name] = {"ind": make_rows(share + 0.01 * seed, seed)}
    base = {"ind": make_rows(1.0, noise=0)}
    return runs, base, measured


@pytest.fixture
def report(sweep):
    runs, base, measured = sweep
    groups = grouped(runs, dict.fromkeys([run.name for run in runs], ""))
    results, per_run = analyse(groups, base, measured, "val/loss_nats")
    about = CircuitDescription(
        {"induction": ("L1H0",)}, "accuracy", "a test", "Repeated", 40, 10_000, "mean"
    )
    return SweepReport(
        folder="<sweep>",
        price="val/loss_nats",
        groups=results,
        runs=per_run,
        circuits={"ind": about},
        unfinished=("w1s9",),
        created="today",
        command="circuitkeep sweep report <sweep>",
    )
