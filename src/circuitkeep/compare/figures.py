"""Every figure of a comparison as a file of its own, for papers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from circuitkeep.compare.attention import filled_chart
from circuitkeep.compare.charts import Chart, file_name
from circuitkeep.compare.page import STYLE, shown
from circuitkeep.compare.report import Report
from circuitkeep.pages import base_style

FORMATS = ("svg", "png")
WIDTH_PX, SCALE_PX, PNG = 672, 60, 3
"""Of figures that take the width they get, of a colour scale; pixels of a PNG per one of a page."""


def check_figures(kind: str) -> None:
    """Refuse figures that could not be drawn in the end, before anything is measured.

    Raises:
        ValueError: If `kind` is unknown, or what draws is not installed; says what to install.
    """
    if kind not in FORMATS:
        raise ValueError(f"figures={kind!r}: must be svg, png, or null for none")
    if find_spec("kaleido") is None:
        raise ValueError(
            f"figures={kind} needs kaleido: pip install 'circuitkeep[figures]'; or save single "
            "figures from the page, by the camera above each"
        )
    from choreographer.browsers.chromium import Chromium

    if Chromium.find_browser(skip_local=False) is None:
        raise ValueError(
            f"figures={kind} needs Chrome or Chromium: install one (apt install chromium, or "
            "plotly_get_chrome), or name it by the environment variable BROWSER_PATH"
        )


def write_figures(report: Report, directory: str | os.PathLike[str], kind: str) -> list[Path]:
    """Write every chart of the page to ``figures/``, in its light colours.

    Maps with a slider give two files, of the base and of the last step; the matrix of what
    transfers one per kind of retention; each prompt three per named head: the base, the last
    checkpoint and their difference.

    Args:
        report: What to draw.
        directory: Of the report.
        kind: ``svg`` or ``png``.

    Raises:
        ValueError: See `check_figures`.
    """
    check_figures(kind)
    import kaleido

    for name in ("kaleido", "choreographer"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every step
    folder = Path(directory) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    colours = light_colours()
    found = {folder / f"{name}.{kind}": drawn(c, colours) for name, c in every_chart(report)}
    kaleido.write_fig_from_object_sync(
        [
            {
                "fig": figure,
                "path": str(path),
                "opts": {
                    "format": kind,
                    "width": figure["layout"].get("width", WIDTH_PX),
                    "height": figure["layout"]["height"],
                    "scale": PNG if kind == "png" else 1,
                },
            }
            for path, figure in found.items()
        ],
        # Nothing is loaded from the network.
        kopts={"mathjax": False},
    )
    return list(found)


def every_chart(report: Report) -> Iterator[tuple[str, Chart]]:
    """The page's charts by the names of their files, frames one by one."""
    for chart in shown(report)[1]:
        frames = chart.get("frames")
        if frames is None:
            yield chart["name"], chart
            continue
        chosen = frames if chart["name"] == "transfer" else [frames[0], frames[-1]]
        for frame in chosen:
            yield file_name(f"{chart['name']}-{frame['name']}"), _at_frame(chart, frame)
    last = len(report.checkpoints)
    sides = (("base", 0, None), ("last", last, None), ("difference", last, 0))
    for number, prompt in enumerate(report.prompts, 1):
        for head in report.named_heads:
            for side, model, against in sides:
                name = f"attention-prompt-{number}-{head}-{side}"
                yield name, filled_chart(prompt, head, model, against)


def _at_frame(chart: Chart, frame: Mapping[str, Any]) -> Chart:
    """As the page's script shows it."""
    cells = dict(frame["data"][0])
    annotations = cells.pop("annotations", [])
    layout = {**chart["layout"], "annotations": annotations}
    return {"data": [{**chart["data"][0], **cells}], "layout": layout}


def light_colours() -> dict[str, str]:
    """The stylesheets' variables, as they are on a light page."""
    found: dict[str, str] = {}
    for name, colour in re.findall(r"(--[\w-]+):\s*(#\w+)", base_style() + STYLE):
        found.setdefault(name, colour)  # those of dark pages come after
    return found


def drawn(chart: Chart, colours: Mapping[str, str]) -> Chart:
    """A chart as plotly takes it: with colours instead of their names, and a page's letters.

    A map gets the scale of its colours, which stands elsewhere on the page.
    """
    layout = {
        "paper_bgcolor": "var(--paper)",
        "plot_bgcolor": "var(--paper)",
        "font": {"family": "sans-serif", "size": 12.5, "color": "var(--muted)"},
        **chart["layout"],
    }
    data = chart["data"]
    if data[0]["type"] == "heatmap":
        scale = {"thickness": 10, "outlinewidth": 0, "tickfont": {"size": 10.5}}
        data = [{**data[0], "showscale": True, "colorbar": scale}]
        margin = layout["margin"]
        layout["width"] = layout["width"] + SCALE_PX
        layout["margin"] = {**margin, "r": margin["r"] + SCALE_PX}
    return {"data": _coloured(data, colours), "layout": _coloured(layout, colours)}


def _coloured(value: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        name = re.fullmatch(r"var\((--[\w-]+)\)", value)
        return colours[name[1]] if name else value
    if isinstance(value, list):
        return [_coloured(item, colours) for item in value]
    if isinstance(value, dict):
        return {key: _coloured(item, colours) for key, item in value.items()}
    return value
