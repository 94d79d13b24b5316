"""``circuitkeep geometry``: every head of a model as a transform of the residual stream."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from circuitkeep.capture import attach
from circuitkeep.cli.settings import construct
from circuitkeep.cli.terminal import print_wide
from circuitkeep.files import replacing
from circuitkeep.geometry import head_geometry
from circuitkeep.geometry.report import ordered, table, to_csv, to_json


def run(config: DictConfig) -> None:
    """Print the table, and write ``geometry.json`` and ``geometry.csv``."""
    ordered((), config.sort)
    if config.top is not None and config.top < 1:
        raise ValueError(f"top={config.top}: show at least one head, or null for all")
    model, _ = construct(config.model)
    heads = head_geometry(attach(model))
    print_wide(table(ordered(heads, config.sort)[: config.top]))
    output = Path(config.output)
    # A model that circuitkeep trains itself has no path in the config; it knows where it lies.
    path = str(config.model.get("path") or model.name_or_path)
    for name, text in (("geometry.json", to_json(heads, path)), ("geometry.csv", to_csv(heads))):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\nall figures are in {output / 'geometry.json'} and {output / 'geometry.csv'}")
