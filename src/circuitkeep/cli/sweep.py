"""``circuitkeep sweep report DIR``: what the runs of a sweep kept, and at what cost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from circuitkeep.circuits import Circuit
from circuitkeep.cli.jobs import CONFIG, comparable
from circuitkeep.cli.settings import circuit_of, construct, find_circuit
from circuitkeep.compare.measure import ABLATION
from circuitkeep.compare.report import CircuitDescription
from circuitkeep.files import replacing
from circuitkeep.probes import build_probe, describe
from circuitkeep.sweeps.analyse import analyse
from circuitkeep.sweeps.collect import Run, find_runs, grouped
from circuitkeep.sweeps.page import render_page
from circuitkeep.sweeps.record import fingerprint
from circuitkeep.sweeps.report import SweepReport
from circuitkeep.sweeps.rows import measure_runs
from circuitkeep.sweeps.terminal import print_report

_GUARD: dict[str, Any] = {
    "seed": None,
    **dict.fromkeys(["penalty", "control", "rival", "probe", "callbacks.preservation"]),
}
"""What may differ between a run and the unregularized ones that it is compared with."""


def run(config: DictConfig) -> None:
    """Measure what is not measured yet, print the table, and write the report."""
    folder = Path(config.dir)
    runs, unfinished = find_runs(folder)
    saved = [_saved(run) for run in runs]
    models = [OmegaConf.to_container(each.model, resolve=True) for each in saved]
    for one, model in zip(runs, models, strict=True):
        if model != models[0]:
            raise ValueError(
                f"{one.name} was trained from another base model than {runs[0].name}: keep sweeps "
                "of different models in different folders"
            )
    circuits = _circuits(config, saved)
    base_name = models[0]
    assert isinstance(base_name, dict)
    with Console(stderr=True).status("measuring") as status:
        base, measured = measure_runs(
            folder,
            runs,
            circuits,
            lambda: construct(saved[0].model),
            {**{str(key): value for key, value in base_name.items()}, "files": _files(base_name)},
            rows=config.rows,
            seed=config.probe_seed,
            progress=lambda name: status.update(f"measuring {name}"),
        )
    settings = {
        one.name: fingerprint(comparable(each, _GUARD))
        for one, each in zip(runs, saved, strict=True)
    }
    groups, results = analyse(grouped(runs, settings), base, measured, config.price)
    report = SweepReport(
        folder=str(folder),
        price=config.price,
        groups=groups,
        runs=results,
        circuits={
            circuit.name: CircuitDescription(
                roles={role.name: tuple(map(str, role.heads)) for role in circuit.roles},
                behaviour=circuit.behaviour,
                source=circuit.source,
                probe=f"{describe(build_probe(circuit.probe))}, held-out split",
                rows=len(base[circuit.name].behaviour),
                seed=config.probe_seed,
                ablation=ABLATION,
            )
            for circuit in circuits
        },
        unfinished=tuple(unfinished),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["circuitkeep", "sweep", "report", *HydraConfig.get().overrides.task]),
        versions={name: version(name) for name in ("circuitkeep", "torch", "transformers")},
    )
    print_report(report)
    contents = {
        "report.json": report.to_json(),
        "runs.csv": report.to_csv(),
        "report.html": render_page(report),
    }
    for name, content in contents.items():
        path = Path(config.output) / name
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        print(path)


def _files(model: Mapping[Any, Any]) -> list[list[str | int]]:
    """Sizes and times of a local model's files: another model at the same path is another base."""
    folder = Path(str(model.get("path", ""))).expanduser()
    if "path" not in model or not folder.is_dir():
        return []
    found = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in found]


def _saved(run: Run) -> DictConfig:
    path = run.folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so it is not known what {run.name} trained")
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    return saved


def _circuits(config: DictConfig, saved: Sequence[Any]) -> list[Circuit]:
    """The circuits asked for, or those of the runs, each once."""
    if config.circuits is not None:
        names = [config.circuits] if isinstance(config.circuits, str) else config.circuits
        found = [find_circuit(name) for name in names]
    else:
        found = []
        for each in saved:
            circuit = circuit_of(each.circuit)
            if circuit is not None and circuit not in found:
                found.append(circuit)
    names = [circuit.name for circuit in found]
    if not found:
        raise ValueError("the runs name no circuit: add circuits=[FILE.yaml,...]")
    if len(set(names)) < len(names):
        raise ValueError(f"two circuits have the same name: {', '.join(names)}")
    return found
