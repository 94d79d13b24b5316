"""``circuitkeep test-power``: how often a circuit's checks are wrong, and what they detect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitkeep.capture import attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.checks import Examination, circuit_files, load_plan
from circuitkeep.checks.power import measure_power
from circuitkeep.checks.power_report import (
    Power,
    check_rows,
    damage_rows,
    explained,
    to_markdown,
)
from circuitkeep.circuits import located
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.cli.terminal import print_wide, told
from circuitkeep.files import replacing


def run(config: DictConfig) -> None:
    """Print the tables, and write ``test-power.json`` and ``test-power.md``."""
    files = circuit_files(
        [config.circuits] if isinstance(config.circuits, str) else config.circuits
    )
    names = ("reseeds", "directions", "runs", "calibration_rows", "seed")
    settings = {name: config[name] for name in names}
    check_arguments(measure_power, settings)
    # The unchanged model is the base of the damaged ones.
    plans = [load_plan(file, base=True) for file in files]
    path, origin = config.model.path, config.base or config.model.path
    tokenizer = Examination(plans, path, config.base, config.tokenizer).tokenizer
    backend = attach(load_checkpoint(path, origin))
    found = []
    for plan, file in zip(plans, files, strict=True):
        with told(Console(stderr=True), f"damaging {plan.circuit.name}") as tell, located(file):
            power = measure_power(
                plan,
                backend,
                tokenizer,
                losses=[float(loss) for loss in config.losses],
                **settings,
                tell=tell,
            )
        found.append(power)
        _print(power)
        _write(config.output, found)
    for name in ("test-power.json", "test-power.md"):
        print(Path(config.output) / name)


def _print(found: Power) -> None:
    for titles, lines in (check_rows(found), damage_rows(found)):
        table = Table(box=None, title=f"\n{found.circuit}", title_justify="left")
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for line in lines:
            table.add_row(*map(Text, line))
        print_wide(table)
    print(explained(found))


def _write(output: str, found: Sequence[Power]) -> None:
    """After each circuit, so that what was measured is not lost."""
    texts = {
        "test-power.json": json.dumps([asdict(one) for one in found], indent=2) + "\n",
        "test-power.md": "\n".join(map(to_markdown, found)),
    }
    for name, text in texts.items():
        with replacing(Path(output) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
