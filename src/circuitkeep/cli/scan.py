"""``circuitkeep scan``: which heads attend as a probe labels, how sure, and what they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from circuitkeep.capture import Backend, attach
from circuitkeep.causal import MEAN, search_circuit
from circuitkeep.circuits import save_circuit
from circuitkeep.cli.settings import circuit_of, construct, find_circuit
from circuitkeep.cli.terminal import told
from circuitkeep.files import replacing
from circuitkeep.probes import Probe, ProbeBatch, build_probe, describe
from circuitkeep.probing import probe_context
from circuitkeep.scan import (
    ScanReport,
    certify,
    confirm,
    dilution,
    measure_effects,
    partners,
    scan,
    take_examples,
    weight_scores,
)
from circuitkeep.scan.page import render_page
from circuitkeep.scan.terminal import tables


def run(config: DictConfig) -> None:
    """Print what was found, write ``scan.json`` and ``scan.html``, and the circuit if asked."""
    circuit = find_circuit(config.against) if config.against else circuit_of(config.circuit)
    spec: Any = circuit.probe if circuit else OmegaConf.to_container(config.probe, resolve=True)
    probe = build_probe(spec)
    roles = config.roles
    if roles is None and circuit is not None:
        roles = [role.name for role in circuit.roles]
    model, tokenizer = construct(config.model)
    backend = attach(model)
    if circuit is not None:
        circuit.check_model(backend.n_layers, backend.n_heads)
    status, out = Console(stderr=True), Console()
    # A model that circuitkeep trains itself has no path in the config; it knows where it lies.
    path = str(config.model.get("path") or model.name_or_path)
    report = _scan(config, path, backend, tokenizer, probe, roles, status)
    for table in tables(report, config.top, circuit if config.against else None):
        out.print(table)
    for note in report.notes:
        out.print(f"\nnot measured: {note}", markup=False, highlight=False)
    output = Path(config.output)
    examples = take_examples(backend, tokenizer, probe, report.roles, seed=config.seed)
    for name, text in (
        ("scan.json", report.to_json()),
        ("scan.html", render_page(report, examples)),
    ):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\nall figures are in {output / 'scan.json'}, to look at in {output / 'scan.html'}")
    if config.save is not None:
        name = config.name or Path(config.save).name.split(".")[0]
        source = f"circuitkeep scan model.path={path} threshold={config.threshold:g}"
        if config.twins:
            source += f" twins={config.twins} level={config.level:g}"
        behaviour = config.behaviour or probe.behaviours[0]
        save_circuit(report.to_circuit(name, spec, behaviour, source), config.save)
        print(f"the circuit is in {config.save}")


def _scan(
    config: DictConfig,
    path: str,
    backend: Backend,
    tokenizer: Any,
    probe: Probe,
    roles: Any,
    console: Console,
) -> ScanReport:
    """Measure all that the config asks for of the model at `path`."""
    context = probe_context(backend, tokenizer)
    with console.status("scoring heads"):
        found = scan(backend, tokenizer, probe, roles, config.rows, config.seed)
    report = ScanReport(path, describe(probe), found, level=config.level, least=config.threshold)
    try:
        report = replace(report, weights=weight_scores(backend))
    except ValueError as error:
        report = _noted(report, f"scores of the weights ({error})")
    if config.twins:
        with console.status("testing against random weights and matched heads"):
            findings = certify(
                backend,
                tokenizer,
                probe,
                roles,
                rows=config.rows,
                seeds=[config.seed + number for number in range(config.seeds)],
                twins=config.twins,
                level=config.level,
                least=config.threshold,
            )
        report = replace(report, findings=findings)
    if config.lengths:
        with console.status("scoring heads in longer prompts"):
            scores = dilution(
                backend, tokenizer, probe, config.lengths, roles, config.rows, config.seed
            )
        report = replace(report, dilution=scores)
    held_out = probe.batch(context, "held_out", config.rows, config.seed)
    if config.causal:
        report = _caused(config, report, backend, probe, held_out, console)
    if config.faithfulness is not None:
        train = probe.batch(context, "train", config.rows, config.seed)
        metric = "log_prob_nats" if held_out.distractor is None else "logit_difference"
        with told(console, "searching the smallest faithful circuit") as tell:
            circuit = search_circuit(
                backend, train, held_out, MEAN, metric, float(config.faithfulness), progress=tell
            )
        report = replace(report, circuit=circuit)
    return report


def _caused(
    config: DictConfig,
    report: ScanReport,
    backend: Backend,
    probe: Probe,
    batch: ProbeBatch,
    console: Console,
) -> ScanReport:
    """What heads do to the answers, whether that is what roles say, and whom they read."""
    with told(console, "ablating heads") as tell:
        effects = measure_effects(backend, batch, tell)
    report = replace(report, effects=effects)
    found = {head for heads in report.heads.values() for head in heads}
    try:
        confirmations = confirm(
            backend,
            batch,
            report.findings,
            effects,
            probe.effects,
            config.level,
            config.threshold,
        )
        report = replace(report, confirmations=confirmations)
    except ValueError as error:
        report = _noted(report, f"what heads write ({error})")
    if config.partners and found:
        try:
            with told(console, "patching paths") as tell:
                paths = partners(
                    backend,
                    batch,
                    found,
                    found,
                    config.partners,
                    config.level,
                    tell,
                )
            report = replace(report, partners=paths)
        except ValueError as error:
            report = _noted(report, f"whom heads read ({error})")
    return report


def _noted(report: ScanReport, note: str) -> ScanReport:
    return replace(report, notes=(*report.notes, note))
