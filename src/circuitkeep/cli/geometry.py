"""``circuitkeep geometry``: heads as transforms of space, manifolds, and the heads between them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from circuitkeep.capture import Backend, attach
from circuitkeep.circuits import Circuit, located
from circuitkeep.cli.settings import circuit_of, construct
from circuitkeep.cli.terminal import print_wide, told
from circuitkeep.files import replacing
from circuitkeep.geometry import head_geometry
from circuitkeep.geometry.channels import Channels, channels
from circuitkeep.geometry.circuit import CircuitGeometry, circuit_geometry
from circuitkeep.geometry.page import render_page
from circuitkeep.geometry.report import (
    alignments_csv,
    manifolds_csv,
    ordered,
    table,
    to_csv,
    to_json,
)
from circuitkeep.geometry.terminal import channel_table, tables
from circuitkeep.probing import probe_rows
from circuitkeep.transcoders.storage import load_transcoder


def run(config: DictConfig) -> None:
    """Print the tables, and write ``geometry.json``, the CSV files and ``geometry.html``."""
    circuit = circuit_of(config.circuit)
    _check(config, circuit)
    model, tokenizer = construct(config.model)
    backend = attach(model)
    # The circuit first: what is wrong in its file is told at once.
    found = None if circuit is None else _circuit(config, circuit, backend, tokenizer)
    heads = head_geometry(backend)
    ways = _channels(config, backend)
    print_wide(table(ordered(heads, config.sort)[: config.top]))
    if ways is not None and config.channels:
        print()
        print_wide(channel_table(ways, config.channels))
    for each in () if found is None else tables(found):
        print()
        print_wide(each)
    # A model that circuitkeep trains itself has no path in the config; it knows where it lies.
    path = str(config.model.get("path") or model.name_or_path)
    texts = {
        "geometry.json": to_json(heads, path, ways, found),
        "geometry.csv": to_csv(heads),
        "geometry.html": render_page(path, heads, ways, found),
    }
    if found is not None:
        texts["manifolds.csv"] = manifolds_csv(found)
        texts["alignments.csv"] = alignments_csv(found)
    output = Path(config.output)
    for name, text in texts.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\nall figures are in {output / 'geometry.json'}, to look at in {output}/geometry.html")


def _check(config: DictConfig, circuit: Circuit | None) -> None:
    """Refuse settings before anything is loaded."""
    ordered((), config.sort)
    if config.top is not None and config.top < 1:
        raise ValueError(f"top={config.top}: show at least one head, or null for all")
    for name, least in (("channels", 0), ("rows", 8), ("draws", 10), ("seed", 0)):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value}: give a whole number from {least} on")
    if config.transcoder is not None and circuit is None:
        raise ValueError(
            "a transcoder's features are looked at by the values of a circuit's manifolds: set "
            "circuit=FILE too"
        )


def _channels(config: DictConfig, backend: Backend) -> Channels | None:
    """None for a model of one layer, which has none."""
    if backend.n_layers < 2:
        return None
    return channels(backend, draws=config.draws, seed=config.seed)


def _circuit(
    config: DictConfig, circuit: Circuit, backend: Backend, tokenizer: Any
) -> CircuitGeometry:
    transcoder = None
    if config.transcoder is not None:
        transcoder = load_transcoder(Path(config.transcoder)).to(backend.device)
    path = config.circuit.get("path")
    with (
        # A circuit that ships has no path; nor has it a mistake.
        located(path) if path else nullcontext(),
        told(Console(stderr=True), "measuring manifolds") as tell,
    ):
        train, held_out = (
            probe_rows(circuit, backend, tokenizer, split, config.rows, config.seed)
            for split in ("train", "held_out")
        )
        return circuit_geometry(
            *(backend, circuit, train, held_out, transcoder),
            draws=config.draws,
            seed=config.seed,
            progress=tell,
        )
