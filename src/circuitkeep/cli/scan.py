"""``circuitkeep scan``: which heads attend as a probe labels, how sure, and what they do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from circuitkeep.capture import Backend, attach
from circuitkeep.causal import Ablation, ablate_each
from circuitkeep.certainty import Finding, certify
from circuitkeep.circuits import Circuit, Head, Role, save_circuit
from circuitkeep.cli.settings import circuit_of, construct, find_circuit
from circuitkeep.files import replacing
from circuitkeep.probes import Probe, build_probe, describe
from circuitkeep.probing import probe_context
from circuitkeep.scan import Scan, scan
from circuitkeep.scan import circuit_of as circuit_found


def run(config: DictConfig) -> None:
    """Print what was found, write ``scan.json``, and the circuit if ``save`` is set."""
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
    with status.status("scoring heads"):
        found = scan(backend, tokenizer, probe, roles, config.rows, config.seed)
    out.print(_scores(found, config.top, config.threshold))
    content = {
        "model": config.model.path,
        "probe": describe(probe),
        "rows": found.rows,
        "seed": found.seed,
        "scores": {role: scores.tolist() for role, scores in found.scores.items()},
    }
    findings: tuple[Finding, ...] = ()
    if config.twins:
        with status.status("testing against random weights and matched heads"):
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
        out.print(_findings(findings, list(found.scores), config.level, config.threshold))
        content["findings"] = [{**asdict(f), "head": str(f.head)} for f in findings]
    if config.causal:
        costs = _costs(backend, tokenizer, probe, config, status)
        out.print(_causal(costs, config.top))
        content["ablation_nats"] = {str(head): cost for head, cost in costs.items()}
    if config.against and circuit is not None:
        out.print(_against(circuit, found, findings))
    if config.save is not None:
        name = config.name or Path(config.save).name.split(".")[0]
        behaviour = config.behaviour or probe.behaviours[0]
        source = f"circuitkeep scan model.path={config.model.path} threshold={config.threshold}"
        if config.twins:
            source += f" twins={config.twins} level={config.level}"
            saved = _reported(findings, name, spec, behaviour, source)
        else:
            saved = circuit_found(found, config.threshold, name, spec, behaviour, source)
        save_circuit(saved, config.save)
        print(f"the circuit is in {config.save}")
    path = Path(config.output) / "scan.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(f"all figures are in {path}")


def _costs(
    backend: Backend, tokenizer: Any, probe: Probe, config: DictConfig, console: Console
) -> dict[Head, float]:
    """Head -> nats per answer token that its mean ablation costs, dearest first."""
    batch = probe.batch(probe_context(backend, tokenizer), "held_out", config.rows, config.seed)
    heads = [Head(layer, i) for layer in range(backend.n_layers) for i in range(backend.n_heads)]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("ablating heads", total=None)
        effects = ablate_each(
            backend,
            heads,
            batch,
            Ablation("mean"),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    costs = dict(zip(heads, effects.nanmean(0).tolist(), strict=True))
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _reported(
    findings: tuple[Finding, ...], name: str, spec: Any, behaviour: str, source: str
) -> Circuit:
    roles: dict[str, list[Head]] = {}
    for finding in findings:
        if finding.reported:
            roles.setdefault(finding.role, []).append(finding.head)
    if not roles:
        raise ValueError("no head holds against both nulls, so there is no circuit to save")
    parts = tuple(Role(role, tuple(heads)) for role, heads in roles.items())
    return Circuit(name, parts, spec, behaviour, source)


def _scores(found: Scan, top: int, threshold: float) -> Table:
    table = Table(title="Mean attention to the role's targets", title_justify="left", box=None)
    table.add_column("role", no_wrap=True)
    for rank in range(1, top + 1):
        table.add_column(str(rank), justify="right", no_wrap=True)
    table.add_column(f"≥ {threshold:g}", justify="right", no_wrap=True)
    for role in found.scores:
        ranked = found.ranked(role)
        cells = [
            f"[{'bold' if score >= threshold else 'dim'}]{head} {score:.2f}[/]"
            for head, score in ranked[:top]
        ]
        reached = sum(score >= threshold for _, score in ranked)
        table.add_row(role, *cells, *[""] * (top - len(cells)), str(reached) if reached else "none")
    return table


def _findings(
    findings: tuple[Finding, ...], roles: list[str], level: float, threshold: float
) -> Table:
    title = (
        f"\nHeads above {threshold:g} that beat random weights and matched heads, p <= {level:g} "
        "after Holm"
    )
    table = Table(title=title, title_justify="left", box=None)
    columns = ("role", "head", "score [95%]", "random", "matched", "offset", "p")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for role in roles:
        own = sorted((f for f in findings if f.role == role), key=lambda f: -f.score)
        reported = [finding for finding in own if finding.reported]
        if not reported:
            best = f"[dim]best {own[0].head} {own[0].score:.2f}[/]"
            table.add_row(role, "[dim]none[/]", best)
        for number, f in enumerate(reported):
            low, high = f.interval
            table.add_row(
                role if number == 0 else "",
                str(f.head),
                f"{f.score:.2f} [{low:.2f}, {high:.2f}]".replace("[", r"\["),
                f"{f.random_score:.2f}",
                f"{f.matched_score:.2f}",
                "" if f.offset is None else str(f.offset),
                f"{f.p:.1g}",
            )
    return table


def _causal(costs: dict[Head, float], top: int) -> Table:
    table = Table(
        title="\nWhat mean-ablating each head alone costs, in nats per answer token",
        title_justify="left",
        box=None,
        show_header=False,
    )
    table.add_row(*(f"{head} {cost:+.2f}" for head, cost in list(costs.items())[:top]))
    return table


def _against(circuit: Circuit, found: Scan, findings: tuple[Finding, ...]) -> Table:
    """The named heads beside what was measured here."""
    table = Table(title=f"\nHeads of {circuit.name}", title_justify="left", box=None)
    for column in ("role", "head", "score", "rank", "reported"):
        table.add_column(column, justify="left" if column in ("role", "head") else "right")
    reported = {(f.role, f.head): f.reported for f in findings}
    for role in circuit.roles:
        ranked = [head for head, _ in found.ranked(role.name)] if role.name in found.scores else []
        for number, head in enumerate(role.heads if ranked else ()):
            answer = reported.get((role.name, head))
            table.add_row(
                role.name if number == 0 else "",
                str(head),
                f"{found.scores[role.name][head.layer, head.index].item():.2f}",
                f"{ranked.index(head) + 1} of {len(ranked)}",
                "not tested" if answer is None else "yes" if answer else "no",
            )
    return table
