"""``circuitkeep scan``: score every head of a model on the roles that a probe labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from circuitkeep.capture import attach
from circuitkeep.circuits import save_circuit
from circuitkeep.cli.settings import circuit_of, construct
from circuitkeep.files import replacing
from circuitkeep.probes import build_probe, describe
from circuitkeep.scan import Scan, scan
from circuitkeep.scan import circuit_of as circuit_found


def run(config: DictConfig) -> None:
    """Print the best heads per role, write ``scan.json``, and the circuit if ``save`` is set."""
    circuit = circuit_of(config.circuit)
    spec: Any = circuit.probe if circuit else OmegaConf.to_container(config.probe, resolve=True)
    probe = build_probe(spec)
    roles = config.roles
    if roles is None and circuit is not None:
        roles = [role.name for role in circuit.roles]
    model, tokenizer = construct(config.model)
    backend = attach(model)
    if circuit is not None:
        circuit.check_model(backend.n_layers, backend.n_heads)
    with Console(stderr=True).status("scoring heads"):
        found = scan(backend, tokenizer, probe, roles, config.rows, config.seed)
    Console().print(_table(found, config.top, config.threshold))
    if config.save is not None:
        behaviour = config.behaviour or probe.behaviours[0]
        source = f"circuitkeep scan model.path={config.model.path} threshold={config.threshold}"
        name = config.name or Path(config.save).name.split(".")[0]
        save_circuit(
            circuit_found(found, config.threshold, name, spec, behaviour, source), config.save
        )
        print(f"the circuit is in {config.save}")
    path = Path(config.output) / "scan.json"
    with replacing(path) as temporary:
        temporary.write_text(_json(found, describe(probe), config), encoding="utf-8")
    print(f"all scores are in {path}")


def _table(found: Scan, top: int, threshold: float) -> Table:
    table = Table(title="Mean attention to the role's targets", title_justify="left", box=None)
    table.add_column("role", no_wrap=True)
    for rank in range(1, top + 1):
        table.add_column(str(rank), justify="right", no_wrap=True)
    table.add_column(f"≥ {threshold:g}", justify="right", no_wrap=True)
    for role in found.scores:
        ranked = found.ranked(role)
        cells = [f"{head} {score:.2f}" for head, score in ranked[:top]]
        cells = [
            f"[bold]{c}[/]" if s >= threshold else f"[dim]{c}[/]"
            for c, (_, s) in zip(cells, ranked, strict=False)
        ]
        reached = sum(score >= threshold for _, score in ranked)
        table.add_row(role, *cells, *[""] * (top - len(cells)), str(reached) if reached else "none")
    return table


def _json(found: Scan, probe: str, config: DictConfig) -> str:
    content = {
        "model": config.model.path,
        "probe": probe,
        "rows": found.rows,
        "seed": found.seed,
        "scores": {role: scores.tolist() for role, scores in found.scores.items()},
    }
    return json.dumps(content, indent=2)
