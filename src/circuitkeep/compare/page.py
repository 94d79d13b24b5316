"""A comparison as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from circuitkeep.compare import charts, wording
from circuitkeep.compare.report import Report


def render_page(report: Report) -> str:
    """The report as a page: tables, plots, per-head scores, and how it was measured.

    Self-contained: style, script and plotly.js (5 MB) are inlined. Names from outside are escaped,
    and a content security policy lets no script but these run and nothing be loaded.
    """
    here = Path(__file__)
    script = here.with_name("page.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"minus": _minus, "capitalize_first": _capitalize_first}
    template = environment.from_string(here.with_name("page.html.j2").read_text(encoding="utf-8"))
    models = (report.base, *report.checkpoints)
    drawn: list[charts.Chart] = []
    return template.render(
        report=report,
        models=models,
        wording=wording,
        sections=[_section(report, circuit, drawn) for circuit in report.circuits],
        capability=_place(drawn, charts.capability_chart(report)),
        charts=drawn,
        rows_width=charts.rows_width(report),
        style=Markup(here.with_name("page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        plotly=Markup(plotly),
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script)),
    )


def _section(report: Report, circuit: str, drawn: list[charts.Chart]) -> dict[str, Any]:
    """What the template shows of a circuit; its charts are added to `drawn`."""
    base = report.base.circuits[circuit]
    models = (report.base, *report.checkpoints)
    return {
        "name": circuit,
        "description": report.circuits[circuit],
        "retention": _place(drawn, charts.retention_chart(report, circuit)),
        "roles": [
            {
                "name": role,
                "heads": list(base.role_scores[role]),
                "maps": [
                    (
                        model.name,
                        _place(drawn, charts.score_chart(model.circuits[circuit], base, role)),
                    )
                    for model in models
                ],
                "scores": {
                    head: [model.circuits[circuit].role_scores[role][head] for model in models]
                    for head in base.role_scores[role]
                },
            }
            for role in base.role_scores
        ],
    }


def _place(drawn: list[charts.Chart], chart: charts.Chart) -> int:
    """Append a chart to the page's; its number tells the page's script where it goes."""
    drawn.append(chart)
    return len(drawn) - 1


def _minus(text: str) -> str:
    """Numbers with a minus sign, which is as wide as a plus; hyphens in names stay."""
    return re.sub(r"(?<![^\s\[(])-(?=\d)", "−", text)


def _capitalize_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
