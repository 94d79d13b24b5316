"""``circuitkeep wandb ENTITY/PROJECT``: a page of W&B with what the project's runs logged."""

from __future__ import annotations

from omegaconf import DictConfig

from circuitkeep.callbacks.wandb_page import build_page, save_page
from circuitkeep.cli.settings import find_circuit


def run(config: DictConfig) -> None:
    """Build the page, upload it and print its address."""
    names = [config.circuits] if isinstance(config.circuits, str) else config.circuits
    circuits = [find_circuit(name) for name in names]
    print(save_page(build_page(config.kind, str(config.project), circuits)))
