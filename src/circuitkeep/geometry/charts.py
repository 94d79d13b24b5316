"""The page's plots as plotly.js figures; colours are the stylesheet's variables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

from circuitkeep.geometry.alignment import Alignment
from circuitkeep.geometry.heads import HeadGeometry
from circuitkeep.geometry.manifolds import ManifoldShape
from circuitkeep.geometry.place_cells import Tiling
from circuitkeep.pages import number, percent
from circuitkeep.pages.space import manifold_trace, space_axes

Chart = dict[str, Any]
"""``{"data": [...], "layout": {...}}`` as plotly.js takes it."""

_SIGNED = [
    *([n / 8, f"var(--minus-{4 - n})"] for n in range(4)),
    *([n / 8 + 0.5, f"var(--heat-{n})"] for n in range(5)),
]
_FLATTEST = 0.35
"""Of an axis beside the longest."""
_LONGEST = 1.7
"""In the units of plotly's scene; more would not fit into a narrow screen."""


def manifold_chart(shape: ManifoldShape) -> Chart:
    """Class means along their first three principal components, coloured by value."""
    points = [(*point, 0.0, 0.0)[:3] for point in shape.coordinates]
    x, y, z = map(list, zip(*points, strict=True))
    values = [shape.manifold.value_of(label) for label in range(len(points))]
    variable = escape(shape.manifold.variable, quote=False)
    # Below, so that the picture has all of a narrow screen.
    below = {"orientation": "h", "y": 0, "yanchor": "top"}
    trace = {"x": x, "y": y, "z": z, **manifold_trace(variable, values, below, "bottom")}
    shares = (*shape.spectrum, 0.0, 0.0)[:3]
    axes = space_axes([f"PC{place + 1} ({percent(share)})" for place, share in enumerate(shares)])
    # Axes of one scale, so that a circle is round; but what is nearly flat is still to be seen.
    ranges = [max(side) - min(side) for side in (x, y, z)]
    ratio = [_LONGEST * max(_FLATTEST, side / max(*ranges, 1e-300)) for side in ranges]
    layout = {
        "height": 400,
        "margin": {"l": 0, "r": 0, "t": 26, "b": 60},
        "showlegend": False,
        "scene": {
            **axes,
            "aspectmode": "manual",
            "aspectratio": dict(zip("xyz", ratio, strict=True)),
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": {"x": 1.1, "y": 1.4, "z": 0.7},
            },
        },
    }
    return {"data": [trace], "layout": layout}


def cosine_chart(shape: ManifoldShape) -> Chart:
    """Cosines of the class means about their centre."""
    values = [shape.manifold.value_of(label) for label in range(len(shape.coordinates))]
    return _heat_map(shape.cosines, values, values, ("", ""), 1.0, "cosine", 300)


def similarity_chart(shape: ManifoldShape) -> Chart:
    """Likeness of classes by their distance, noise taken off."""
    step = shape.manifold.step
    x = [float(step * distance) for distance in range(len(shape.similarity))]
    return _lines(x, list(shape.similarity), "distance", "likeness", zero=True)


def spectrum_chart(shape: ManifoldShape) -> Chart:
    """Share of the means' variance along each of the first components."""
    shares = list(shape.spectrum[:12])
    chart = _lines([n + 1.0 for n in range(len(shares))], shares, "component", "share")
    chart["data"] = [
        {
            **{key: chart["data"][0][key] for key in ("x", "y", "hovertemplate")},
            "type": "bar",
            "marker": {"color": "var(--accent)"},
        }
    ]
    chart["layout"]["yaxis"] |= {"tickformat": ".0%"}
    chart["layout"]["xaxis"] |= {"dtick": 2}
    return chart


def alignment_chart(one: Alignment, query: ManifoldShape, key: ManifoldShape) -> Chart:
    """A head's scores between classes; the line is the diagonal at its offset."""
    rows, columns = (
        [shape.manifold.value_of(label) for label in range(len(shape.coordinates))]
        for shape in (query, key)
    )
    names = (query.manifold.variable, key.manifold.variable)
    largest = max(abs(score) for row in one.scores for score in row)
    chart = _heat_map(one.scores, rows, columns, names, largest, "nats", 300)
    low = max(rows[0], columns[0] - one.offset)
    high = min(rows[-1], columns[-1] - one.offset)
    chart["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": low + one.offset,
            "x1": high + one.offset,
            "y0": low,
            "y1": high,
            "line": {"color": "var(--named)", "width": 1.5, "dash": "dot"},
        }
    ]
    return chart


def eigenvalue_charts(heads: Sequence[HeadGeometry]) -> list[tuple[int, Chart]]:
    """Eigenvalues of the heads' OV maps in the complex plane, a chart per layer."""
    by_layer: dict[int, list[HeadGeometry]] = defaultdict(list)
    for head in heads:
        by_layer[head.head.layer].append(head)
    largest = max((abs(complex(*v)) for head in heads for v in head.eigenvalues), default=1.0)
    return [(layer, _eigenvalues(own, 1.08 * largest)) for layer, own in by_layer.items()]


def place_cell_chart(tiling: Tiling) -> Chart:
    """Preferred value and width of every place cell."""
    texts = [
        f"feature {cell}<br>prefers {value:g}, {width:g} wide"
        for cell, value, width in zip(tiling.cells, tiling.preferred, tiling.widths, strict=True)
    ]
    chart = _lines(list(tiling.preferred), list(tiling.widths), "preferred value", "width")
    chart["data"][0] |= {"mode": "markers", "text": texts, "hoverinfo": "text"}
    return chart


def _eigenvalues(heads: Sequence[HeadGeometry], most: float) -> Chart:
    x, y, texts = [], [], []
    for head in heads:
        for real, imaginary in head.eigenvalues:
            x.append(real)
            y.append(imaginary)
            texts.append(
                f"{head.head}: {number(real)} {'+' if imaginary >= 0 else '−'} "
                f"{number(abs(imaginary))}i"
            )
    axis = {
        "range": [-most, most],
        "fixedrange": True,
        "zeroline": True,
        "zerolinecolor": "var(--muted)",
        "gridcolor": "var(--rule)",
        "nticks": 5,
    }
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": x,
                "y": y,
                "text": texts,
                "hoverinfo": "text",
                "marker": {"size": 6, "color": "var(--accent)", "opacity": 0.7},
            }
        ],
        "layout": {
            "width": 250,
            "height": 262,
            "margin": {"l": 38, "r": 6, "t": 26, "b": 30},
            "showlegend": False,
            "dragmode": False,
            "hovermode": "closest",
            "xaxis": axis,
            "yaxis": axis,
        },
    }


def _lines(
    x: Sequence[float], y: Sequence[float], across: str, up: str, zero: bool = False
) -> Chart:
    axis = {
        "fixedrange": True,
        "zeroline": zero,
        "zerolinecolor": "var(--muted)",
        "gridcolor": "var(--rule)",
    }
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(x),
                "y": list(y),
                "line": {"color": "var(--accent)", "width": 2},
                "marker": {"color": "var(--accent)", "size": 5},
                "hovertemplate": f"{across} %{{x:g}}: %{{y:.2f}}<extra></extra>",
            }
        ],
        "layout": {
            "width": 300,
            "height": 240,
            "margin": {"l": 50, "r": 8, "t": 26, "b": 40},
            "showlegend": False,
            "dragmode": False,
            "xaxis": {**axis, "zeroline": False, "title": {"text": across, "standoff": 6}},
            "yaxis": {**axis, "title": {"text": up, "standoff": 4}},
        },
    }


def _heat_map(
    cells: Sequence[Sequence[float]],
    rows: Sequence[float],
    columns: Sequence[float],
    names: tuple[str, str],
    largest: float,
    unit: str,
    side_px: int,
) -> Chart:
    """Signed cells, row values going up; `names` of the variables stand at the axes."""
    down, across = (escape(name, quote=False) for name in names)
    text = [
        [
            f"{down} {row:g}, {across} {column:g}: {number(cell)}".removeprefix(" ")
            for column, cell in zip(columns, line, strict=True)
        ]
        for row, line in zip(rows, cells, strict=True)
    ]
    axis = {"fixedrange": True, "showgrid": False, "zeroline": False, "ticks": ""}
    return {
        "data": [
            {
                "type": "heatmap",
                "x": list(columns),
                "y": list(rows),
                "z": [list(line) for line in cells],
                "zmin": -largest,
                "zmax": largest,
                "colorscale": _SIGNED,
                "text": text,
                "hoverinfo": "text",
                "colorbar": {
                    "thickness": 10,
                    "len": 0.7,
                    "outlinewidth": 0,
                    "nticks": 5,
                    "title": {"text": unit, "side": "right"},
                },
            }
        ],
        "layout": {
            "width": side_px + 60,
            "height": side_px + 20,
            "margin": {"l": 52, "r": 4, "t": 26, "b": 42},
            "dragmode": False,
            "xaxis": {**axis, "title": {"text": across, "standoff": 6}},
            "yaxis": {**axis, "title": {"text": down, "standoff": 4}},
        },
    }
