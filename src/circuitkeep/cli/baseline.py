"""``circuitkeep baseline write|check|update``: what circuits score, pinned beside their files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitkeep.capture import attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.checks import Examination, Verdict, circuit_files, load_plan
from circuitkeep.checks.baseline import Baseline, baseline_path, read_baseline, write_baseline
from circuitkeep.checks.changes import changes
from circuitkeep.checks.pin import Pinning, ends, pin, pinned_plan
from circuitkeep.checks.propose import POWER, check_loss, check_settings, rows_needed
from circuitkeep.circuits import load_circuit, located
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.cli.terminal import print_wide, told

ACTIONS = ("write", "check", "update")
STYLES = {Verdict.PASSED: "green", Verdict.FAILED: "bold red", Verdict.INCONCLUSIVE: "yellow"}


def run(config: DictConfig) -> None:
    """Write, check or update the baselines; ends with 1 if a check fails its threshold."""
    if config.action not in ACTIONS:
        raise ValueError(f"there is no baseline {config.action}; write, check or update it")
    files = circuit_files(
        [config.circuits] if isinstance(config.circuits, str) else config.circuits
    )
    pinned = [baseline_path(file) for file in files]
    for file, path in zip(files, pinned, strict=True):
        if path.is_file() and config.action == "write":
            raise ValueError(f"{path} is there already; `circuitkeep baseline update` rewrites it")
        if not path.is_file() and config.action != "write":
            raise ValueError(f"{file} has no baseline; `circuitkeep baseline write` makes one")
    if config.action == "check":
        _check(config, files)
    else:
        _measure(config, files)


def _measure(config: DictConfig, files: Sequence[Path]) -> None:
    settings = {key: config[key] for key in ("reseeds", "seed", "missed", "tolerated", "twins")}
    check_arguments(pin, settings)
    settings |= {key: float(config[key]) for key in ("missed", "tolerated")}
    check_settings(settings["reseeds"], settings["missed"], settings["tolerated"])
    loss = float(config.loss)
    check_loss(loss, settings["tolerated"])
    plans = []
    for file in files:
        with located(file):
            plans.append(
                pinned_plan(load_circuit(file), config.base is not None, config.faithfulness)
            )
    path, origin = config.model.path, config.base
    tokenizer = Examination(plans, path, origin, config.tokenizer).tokenizer
    base = None if origin is None else attach(load_checkpoint(origin, origin))
    backend = attach(load_checkpoint(path, origin or path))
    for plan, file in zip(plans, files, strict=True):
        with (
            told(Console(stderr=True), f"measuring {plan.circuit.name}") as tell,
            located(file),
        ):
            found = pin(plan, backend, tokenizer, base, **settings, tell=tell)
        _print(found, loss)
        where = baseline_path(file)
        if config.action == "update":
            for line in changes(read_baseline(where), found.baseline):
                print(f"  {line}")
        write_baseline(found.baseline, where)
        print(where)


def _print(found: Pinning, loss: float) -> None:
    """What is pinned, what it is good for, and what is not."""
    baseline = found.baseline
    rows = baseline.rows * baseline.seeds
    needed = {
        name: rows_needed(
            rows, one.detects, 1 - one.threshold / one.value, baseline.tolerated, loss
        )
        for name, one in baseline.checks.items()
    }
    table = Table(box=None, title_justify="left", title=f"\n{baseline.circuit}")
    columns = ("check", "value [95%]", "without a circuit", "threshold", "false alarm", "detects")
    for number, column in enumerate((*columns, f"rows for -{loss:.0%}")):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for name, one in baseline.checks.items():
        table.add_row(
            Text(name),
            Text(f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"),
            f"{one.null:.3g}",
            f"{one.threshold:.4g}",
            f"{one.false_alarm:.0e}",
            f"-{one.detects:.0%}",
            f"{needed[name]}" if needed[name] > rows else "enough",
        )
    print_wide(table)
    print(
        f"On other draws of {rows} rows an unchanged model does not pass a check with a chance of "
        f"at most {baseline.missed:g}, and fails it with that under 'false alarm'; the loss under "
        f"'detects' fails it with a chance of {POWER:g}. Told by {baseline.reseeds} draws."
    )
    most = max(needed.values(), default=0)
    if most > rows:
        print(
            f"{rows} rows are too few to detect a loss of {loss:.0%} by each check: about {most} "
            f"would do it; set `tests: {{rows: {-(-most // baseline.seeds)}}}` in the circuit file."
        )
    for name, why in found.refused.items():
        print(f"not pinned: {name}: {why}")


def _check(config: DictConfig, files: Sequence[Path]) -> None:
    plans = [load_plan(file, config.base is not None) for file in files]
    baselines = [read_baseline(baseline_path(file)) for file in files]
    examination = Examination(plans, config.model.path, config.base, config.tokenizer)
    failed = False
    with Console(stderr=True).status("loading the model"):
        model = fingerprint_model(examination.backend.model)
    for plan, file, baseline in zip(plans, files, baselines, strict=True):
        table = Table(box=None, title_justify="left", title=f"\n{plan.circuit.name}")
        for number, column in enumerate(("check", "", "measured [95%]", "pinned [95%]", "asked")):
            table.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
        for check in plan.checks:
            with (
                Console(stderr=True).status(f"measuring {plan.circuit.name}"),
                located(file),
            ):
                outcome = examination.judge(plan, check)
            failed |= outcome.verdict == Verdict.FAILED
            # What is pinned of replicates is a score, where the outcome counts parts.
            value, low, high = outcome.value, outcome.low, outcome.high
            if check.kind == "replicates":
                value, low, high = ends(plan, check, examination.evidence(plan))
            one = baseline.checks.get(check.name)
            table.add_row(
                Text(check.name),
                Text(outcome.verdict.value, style=STYLES[outcome.verdict]),
                Text(f"{value:.3g} [{low:.3g}, {high:.3g}]"),
                Text("" if one is None else f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"),
                Text(f"{check.threshold:.4g} ({check.source})"),
            )
        print_wide(table)
        _told_apart(baseline, model, plan.rows, len(plan.seeds))
    if failed:
        sys.exit(1)


def _told_apart(baseline: Baseline, model: str, rows: int, seeds: int) -> None:
    """What else is not as it was when the baseline was written."""
    if model == baseline.model:
        print("The weights are those that were pinned.")
    if (rows, seeds) != (baseline.rows, baseline.seeds):
        print(
            f"The thresholds are for {baseline.rows} rows of each of {baseline.seeds} seeds, the "
            f"circuit file asks for {rows} of {seeds}: `circuitkeep baseline update` places them "
            "anew."
        )
