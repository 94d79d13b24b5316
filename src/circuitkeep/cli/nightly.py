"""``circuitkeep nightly``: a suite of circuits over a list of checkpoints, and their history."""

from __future__ import annotations

import shlex
import socket
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from circuitkeep.checks import Plan, circuit_files, load_plan
from circuitkeep.circuits import did_you_mean
from circuitkeep.cli.compare import named
from circuitkeep.cli.mistakes import EXAMPLES, check_arguments
from circuitkeep.cli.settings import circuit_path
from circuitkeep.cli.terminal import print_wide
from circuitkeep.compare.progress import progress_bar
from circuitkeep.files import replacing
from circuitkeep.nightly.artifacts import check_paths
from circuitkeep.nightly.history import Event, History, Run
from circuitkeep.nightly.page import render_page
from circuitkeep.nightly.suite import measure, redrawn, utc_now
from circuitkeep.nightly.terminal import not_passed, render_errors, render_table
from circuitkeep.nightly.trend import Trends, trends
from circuitkeep.nightly.wording import headline

PAGE = "nightly.html"


def run(config: DictConfig) -> None:
    """Measure, append, print what is wrong and write the page; exits with 1 if something is."""
    settings = {key: config[key] for key in ("redraw", "nights", "strict")}
    check_arguments(nightly, settings)
    nightly(**settings)
    found = _measure(config) if config.accept is None else _accept(config)
    path = Path(config.output) / PAGE
    with replacing(path) as temporary:
        temporary.write_text(render_page(found, str(config.history)), encoding="utf-8")
    print(path)
    wrong = bool(found.bad or found.errors)
    wrong |= config.strict and any(one.last.state == "inconclusive" for one in found.now)
    if config.accept is None and wrong:
        sys.exit(1)


def nightly(redraw: bool, nights: int | float, strict: bool) -> None:
    """Refuse settings that are no such numbers, or out of range."""
    if not nights >= 10:
        raise ValueError(f"nights must be at least 10, got {nights}; a year is 365")


def _measure(config: DictConfig) -> Trends:
    for key in ("circuits", "checkpoints"):
        if not config[key]:
            raise ValueError(f"{key} is not set: add {EXAMPLES[key]}")
    started, clock = utc_now(), time.monotonic()
    base = None if config.base is None else str(config.base)
    plans = _plans(config, base is not None)
    if config.redraw:
        night = datetime.fromisoformat(started).date()
        plans = [redrawn(plan, night) for plan in plans]
    checkpoints = named(config.checkpoints)
    check_paths({**checkpoints, **({} if base is None else {"base": base})})
    # Before hours are spent on what could not be written down.
    history = History(config.history)
    with progress_bar((base is not None) + len(checkpoints)) as progress:
        tokenizer = None if config.tokenizer is None else str(config.tokenizer)
        measurements, events = measure(plans, checkpoints, base, tokenizer, progress)
    history.append(
        Run(
            started,
            round(time.monotonic() - clock, 1),
            socket.gethostname(),
            base or "",
            version("circuitkeep"),
            version("torch"),
            shlex.join(["circuitkeep", "nightly", *HydraConfig.get().overrides.task]),
        ),
        measurements,
        events,
    )
    found = trends(history.read(), config.nights)
    _print(found)
    return found


def _plans(config: DictConfig, base: bool) -> list[Plan]:
    """Of circuit files, folders of them, and circuits that ship."""
    names = [config.circuits] if isinstance(config.circuits, str) else map(str, config.circuits)
    return [load_plan(path, base) for path in circuit_files(map(circuit_path, names))]


def _accept(config: DictConfig) -> Trends:
    """Write down that the newest values are right."""
    if not Path(config.history).is_file():
        raise FileNotFoundError(f"there is no history at {config.history}; set history=FILE")
    reason = str(config.accept).strip()
    if not reason:
        raise ValueError("accept wants the reason why the newest values are right: accept='...'")
    history = History(config.history)
    found = trends(history.read(), config.nights)
    about = {key: "" if config.only[key] is None else str(config.only[key]) for key in config.only}
    for key, value in about.items():
        known = sorted({getattr(one, key) for one in found.series})
        if value and value not in known:
            raise ValueError(
                f"only.{key}: the history has no {value!r}" + did_you_mean(value, known)
            )
    history.accept(Event(utc_now(), "accepted", **about, text=reason, run=found.runs[-1].id))
    found = trends(history.read(), config.nights)
    _print(found)
    return found


def _print(found: Trends) -> None:
    """What is wrong, and one sentence."""
    if shown := not_passed(found):
        print_wide(render_table(shown))
    console = Console(soft_wrap=True)
    console.print(render_errors(found), end="")
    console.print(headline(found), markup=False, highlight=False)
