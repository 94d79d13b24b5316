"""A sweep as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path

from plotly.offline import get_plotlyjs

from circuitkeep import compare
from circuitkeep.compare.charts import file_name
from circuitkeep.compare.wording import KINDS, listed_heads
from circuitkeep.pages import number, percent, render, shared_script
from circuitkeep.sweeps import wording
from circuitkeep.sweeps.charts import pareto_chart
from circuitkeep.sweeps.report import SweepReport


def render_page(report: SweepReport) -> str:
    """The report as a page: a plot per circuit, a table that sorts, the runs, and the method.

    Self-contained: style, scripts and plotly.js (5 MB) are inlined; names from outside are
    escaped.
    """
    here, beside = Path(__file__), Path(str(compare.__file__))
    circuits = list(report.circuits)
    charts = [
        {**pareto_chart(report, circuit), "name": file_name(f"{circuit}-price")}
        for circuit in circuits
    ]
    content = {
        "report": report,
        "circuits": circuits,
        "kinds": KINDS,
        "wording": wording,
        "listed_heads": listed_heads,
        "number": number,
        "percent": percent,
        "losses": sorted({name for group in report.groups for name in group.capability}),
    }
    return render(
        here.with_name("page.html.j2"),
        beside.with_name("page.css").read_text(encoding="utf-8")
        + here.with_name("page.css").read_text(encoding="utf-8"),
        [
            get_plotlyjs(),
            shared_script("charts.js"),
            shared_script("sorting.js"),
        ],
        {"charts": charts},
        content,
    )
