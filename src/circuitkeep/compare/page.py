"""A comparison as one HTML file that needs no network."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from circuitkeep.compare import (
    attention,
    charts,
    geometry_page,
    graphs,
    over_steps,
    pareto,
    tasks,
    wording,
)
from circuitkeep.compare.heads import TOP
from circuitkeep.compare.report import Report
from circuitkeep.compare.transfer_chart import transfer_chart
from circuitkeep.pages import number, percent, render, shared_script, signed

HERE = Path(__file__)
STYLE = HERE.with_name("page.css").read_text(encoding="utf-8")
LONG = 12
"""Steps from which on a table would push all else off the screen."""


def render_page(report: Report) -> str:
    """The report as a page: tables, plots, per-head scores, and how it was measured.

    Self-contained: style, script and plotly.js (5 MB) are inlined. Names from outside are escaped,
    and a content security policy lets no script but these run and nothing be loaded.
    """
    content, drawn = shown(report)
    return render(
        HERE.with_name("page.html.j2"),
        STYLE,
        [
            get_plotlyjs(),
            shared_script("charts.js"),
            HERE.with_name("page_attention.js").read_text(encoding="utf-8"),
            shared_script("sorting.js"),
        ],
        {"charts": drawn, "attention": attention.page_data(report)},
        content,
    )


def shown(report: Report) -> tuple[dict[str, Any], list[charts.Chart]]:
    """What the template names, and the charts it places, each with the name of its file."""
    drawn: list[charts.Chart] = []
    over_time = bool(report.steps)
    capability = over_steps.capability_over_steps if over_time else charts.capability_chart
    content = {
        "report": report,
        "models": (report.base, *report.checkpoints),
        "wording": wording,
        "tasks": tasks,
        "graphs": graphs,
        "geometry": geometry_page,
        "number": number,
        "percent": percent,
        "signed": signed,
        "sections": [_section(report, circuit, drawn) for circuit in report.circuits],
        "capability": _place(drawn, "capability", capability(report))
        if report.base.capability
        else None,
        "transfer": _place(drawn, "transfer", transfer_chart(report.transfer))
        if report.transfer
        else None,
        "rows_width": 0 if over_time else charts.rows_width(report),
        # Tables of many steps scroll within themselves.
        "long": " long" if len(report.steps) > LONG else "",
        "top": TOP,
        "named": _named(report),
    }
    return content, drawn


def _named(report: Report) -> list[tuple[str, list[tuple[int, str]]]]:
    """What the list of heads offers: circuit and role -> heads by their number; then all."""
    if not report.prompts:
        return []
    heads = report.prompts[0].heads
    found = [
        (f"{name}: {role}", [(heads.index(head), head) for head in own])
        for name, circuit in report.circuits.items()
        for role, own in circuit.roles.items()
    ]
    named = set(report.named_heads)
    others = [(place, head) for place, head in enumerate(heads) if head not in named]
    return [*found, ("all others", others)] if others else found


def _section(report: Report, circuit: str, drawn: list[charts.Chart]) -> dict[str, Any]:
    """What the template shows of a circuit; its charts are added to `drawn`."""
    kept = over_steps.retention_over_steps if report.steps else charts.retention_chart
    return {
        "name": circuit,
        "description": report.circuits[circuit],
        "retention": _place(drawn, f"{circuit}-retention", kept(report, circuit)),
        "prices": [
            {
                "dataset": dataset,
                "chart": _place(
                    drawn,
                    f"{circuit}-price-{dataset}",
                    pareto.pareto_chart(report, circuit, dataset),
                ),
                "fronts": {
                    kind: pareto.front_numbers(report, circuit, dataset, kind)
                    for kind in pareto.KEPT
                },
            }
            for dataset in (report.base.capability if report.checkpoints else ())
        ],
        "manifolds": [
            (
                name,
                _place(
                    drawn,
                    f"{circuit}-{name}",
                    geometry_page.manifold_chart(report, circuit, name),
                ),
                _place(
                    drawn,
                    f"{circuit}-{name}-drift",
                    over_steps.drift_over_steps(report, circuit, name),
                )
                if report.steps
                else None,
            )
            for name in report.circuits[circuit].manifolds
        ],
        "roles": [_role(report, circuit, role, drawn) for role in report.circuits[circuit].roles],
    }


def _role(report: Report, circuit: str, role: str, drawn: list[charts.Chart]) -> dict[str, Any]:
    """What the template shows of a role: maps of all heads, who does the job, the named heads."""
    base = report.base.circuits[circuit]
    models = (report.base, *report.checkpoints)
    name = f"{circuit}-{role}-scores"
    if report.steps:
        frames = over_steps.score_frames(report, circuit, role)
        maps = [("", _place(drawn, name, frames), [frame["name"] for frame in frames["frames"]])]
    else:
        maps = [
            (
                each.name,
                _place(
                    drawn,
                    f"{name}-{each.name}",
                    charts.score_chart(each.circuits[circuit], base, role),
                ),
                [],
            )
            for each in models
        ]
    changes = []
    for checkpoint in report.checkpoints:
        result = checkpoint.circuits[circuit]
        moved = result.moved[role]
        lost, risen = (
            wording.scores_from_to(heads, role, result, base) for heads in (moved.lost, moved.risen)
        )
        changes.append(
            {
                "name": checkpoint.name,
                "lost": lost,
                "risen": risen,
                "ranking": result.rankings[role],
            }
        )
    heads = list(base.role_scores[role])
    return {
        "name": role,
        "heads": heads,
        "maps": maps,
        "changes": changes,
        # Not where it is said already, or there are no more heads.
        "top_10": len(heads) != TOP and any(isfinite(c["ranking"].top_10) for c in changes),
        "scores": [
            (
                model.name,
                [
                    (
                        model.circuits[circuit].role_scores[role][head],
                        model.circuits[circuit].contributions[head],
                    )
                    for head in heads
                ],
            )
            for model in models
        ],
    }


def _place(drawn: list[charts.Chart], name: str, chart: charts.Chart) -> int:
    """Append a chart to the page's; its number tells the page's script where it goes.

    Its name is that of the file that it is saved in: signs that a file system may not take are
    left out, and charts of equal names are numbered.
    """
    plain = charts.file_name(name)
    taken = {each["name"] for each in drawn}
    unique = plain if plain not in taken else f"{plain}-{len(drawn)}"
    drawn.append({**chart, "name": unique})
    return len(drawn) - 1
