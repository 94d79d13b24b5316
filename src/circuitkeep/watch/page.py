"""The dashboard as one HTML file; its numbers come from the server, once a second."""

from __future__ import annotations

from pathlib import Path

from plotly.offline import get_plotlyjs

from circuitkeep.pages import percent, render

SCRIPTS = ("page_store.js", "page_charts.js", "page_parts.js", "page.js")


def render_page(run: Path, threshold: float) -> str:
    """The page, still without a number.

    Args:
        run: The run's folder, which it is called by.
        threshold: Retention, as a share of the base's, below which the page says so.
    """
    here = Path(__file__).parent
    return render(
        here / "page.html.j2",
        (here / "page.css").read_text(encoding="utf-8"),
        [*((here / name).read_text(encoding="utf-8") for name in SCRIPTS), get_plotlyjs()],
        {"threshold": threshold},
        {"name": run.resolve().name, "path": str(run.resolve()), "threshold": percent(threshold)},
    )
