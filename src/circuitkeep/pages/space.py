"""A manifold in three dimensions, as plotly.js draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def manifold_trace(
    variable: str, values: Sequence[float], colorbar: Mapping[str, Any], side: str
) -> dict[str, Any]:
    """A line through points that are coloured by value; all of the trace but where they lie.

    Args:
        variable: Its name, escaped.
        values: Of each point.
        colorbar: Where it is.
        side: Of it, on which the name stands.
    """
    title = {"text": variable, "side": side}
    return {
        "type": "scatter3d",
        "mode": "lines+markers",
        "text": [f"{variable} {value:g}" for value in values],
        "hoverinfo": "text",
        "line": {"color": "var(--muted)", "width": 2},
        "marker": {
            "size": 4.5,
            "color": list(values),
            "colorscale": "Viridis",
            "colorbar": {
                **colorbar,
                "title": title,
                "thickness": 10,
                "len": 0.6,
                "outlinewidth": 0,
            },
        },
    }


def space_axes(titles: Sequence[str]) -> dict[str, Any]:
    """The axes of a scene, one for each of three titles."""
    return {
        f"{axis}axis": {
            "title": {"text": title},
            "color": "var(--muted)",
            "gridcolor": "var(--rule)",
            "zerolinecolor": "var(--rule)",
            "backgroundcolor": "rgba(0,0,0,0)",
            "showspikes": False,
            "nticks": 5,
        }
        for axis, title in zip("xyz", titles, strict=True)
    }
