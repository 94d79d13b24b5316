"""The geometry of a model as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from circuitkeep.geometry import charts
from circuitkeep.geometry.channels import Channels
from circuitkeep.geometry.circuit import CircuitGeometry
from circuitkeep.geometry.heads import HeadGeometry
from circuitkeep.geometry.manifolds import ManifoldShape
from circuitkeep.geometry.report import best_of_pairs, figures
from circuitkeep.pages import number, percent, render, shared_script

LISTED = 12
"""Heads of a pair of manifolds, and parts that write a manifold."""
HERE = Path(__file__)


def render_page(
    model: str,
    heads: Sequence[HeadGeometry],
    channels: Channels | None = None,
    circuit: CircuitGeometry | None = None,
) -> str:
    """Heads as transforms, the ways between them, and a circuit's manifolds in three dimensions.

    Self-contained: style, scripts and plotly.js (5 MB) are inlined; names from outside are escaped.

    Args:
        model: Its name or path.
        heads: All of them.
        channels: The strongest ways; None for a model of one layer.
        circuit: Manifolds and the heads between them; None for none.
    """
    drawn: list[charts.Chart] = []

    def place(name: str, chart: charts.Chart) -> int:
        drawn.append({**chart, "name": name})
        return len(drawn) - 1

    content = {
        "model": model,
        "heads": heads,
        "figures": figures,
        "eigenvalues": [
            (layer, place(f"eigenvalues-L{layer}", chart))
            for layer, chart in charts.eigenvalue_charts(heads)
        ],
        "channels": channels,
        "circuit": circuit,
        "manifolds": []
        if circuit is None
        else [_manifold(circuit, s, place) for s in circuit.shapes],
        "pairs": [] if circuit is None else _pairs(circuit, place),
        "number": number,
        "percent": percent,
    }
    return render(
        HERE.with_name("page.html.j2"),
        HERE.with_name("page.css").read_text(encoding="utf-8"),
        [get_plotlyjs(), shared_script("charts.js"), shared_script("sorting.js")],
        {"charts": drawn},
        content,
    )


def _manifold(circuit: CircuitGeometry, shape: ManifoldShape, place: Any) -> dict[str, Any]:
    """What the template shows of a manifold."""
    name = shape.manifold.name
    tiling = next((one for one in circuit.tilings if one.manifold == name), None)
    return {
        "shape": shape,
        "space": place(f"{name}-3d", charts.manifold_chart(shape)),
        "cosines": place(f"{name}-cosines", charts.cosine_chart(shape)),
        "similarity": place(f"{name}-likeness", charts.similarity_chart(shape)),
        "spectrum": place(f"{name}-spectrum", charts.spectrum_chart(shape)),
        "parts": circuit.parts[name][:LISTED],
        "transforms": [one for one in circuit.transforms if one.manifold == name],
        "tiling": tiling,
        "cells": None
        if tiling is None or not tiling.cells
        else place(f"{name}-place-cells", charts.place_cell_chart(tiling)),
    }


def _pairs(circuit: CircuitGeometry, place: Any) -> list[dict[str, Any]]:
    """What the template shows of each pair of manifolds that heads read."""
    shapes = {shape.manifold.name: shape for shape in circuit.shapes}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in best_of_pairs(circuit.alignments, LISTED):
        pair = found.setdefault(
            (one.query, one.key), {"query": one.query, "key": one.key, "heads": [], "maps": []}
        )
        pair["heads"].append(one)
    for one in best_of_pairs(circuit.alignments):
        pair = found[one.query, one.key]
        if pair["maps"] and not one.is_boundary:
            continue
        chart = charts.alignment_chart(one, shapes[one.query], shapes[one.key])
        name = f"{one.query}-{one.key}-{one.head}"
        pair["maps"].append((one, place(name, chart)))
    everything = circuit.alignments
    for (query, key), pair in found.items():
        own = [one for one in everything if (one.query, one.key) == (query, key)]
        pair["all"] = len(own)
        pair["boundary"] = sum(one.is_boundary for one in own)
    return list(found.values())
