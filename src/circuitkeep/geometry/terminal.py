"""The geometry of a circuit's manifolds, and of the ways between heads, in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from circuitkeep.geometry.channels import Channels
from circuitkeep.geometry.circuit import CircuitGeometry
from circuitkeep.geometry.report import best_of_pairs
from circuitkeep.pages import number, percent

SHOWN = 8
"""Heads of each pair of manifolds."""


def channel_table(found: Channels, top: int) -> Table:
    """The strongest ways from one head to another."""
    shown = _table("from", "to", "as", "overlap", "score", "random", "z")
    for one in found.strongest[:top]:
        figures = (one.overlap, one.composition, one.random)
        shown.add_row(
            *(str(one.writer), str(one.reader), one.kind),
            *(number(value, 3) for value in figures),
            number(one.z, 1),
        )
    return shown


def tables(found: CircuitGeometry) -> list[Table]:
    """What each manifold looks like, and the heads that match two of them."""
    shapes = _table(
        *("manifold", "variable", "layer", "classes", "explained", "dimensions", "turn", "ripple"),
        *("probe error", "of guessing"),
    )
    for one in found.shapes:
        manifold, dip = one.manifold, one.ripple.distance
        shapes.add_row(
            *(manifold.name, manifold.variable, str(manifold.layer), str(manifold.classes)),
            percent(one.explained),
            f"{one.signal_dimension} to {one.dimension}",
            number(one.signal_turn),
            "none" if dip is None else f"{number(one.ripple.depth)} at {dip * manifold.step}",
            number(one.probe.rmse),
            number(one.probe.guessing),
        )
    if not found.alignments:
        return [shapes]
    heads = _table(
        *(
            "query",
            "key",
            "head",
            "correlation",
            "offset",
            "held out",
            "random",
            "limit",
            "product",
        ),
        *("in the stream", "nats", "boundary"),
    )
    for one in best_of_pairs(found.alignments, SHOWN):
        heads.add_row(
            *(one.query, one.key, str(one.head)),
            *(number(one.correlation), number(one.offset, 1), number(one.held_out)),
            *(number(one.random_mean), number(one.random_limit), number(one.monotone)),
            *(number(one.stream), number(one.strength)),
            "yes" if one.is_boundary else "no",
        )
    return [shapes, heads]


def _table(*columns: str) -> Table:
    words = {"manifold", "variable", "query", "key", "head", "from", "to", "as", "boundary"}
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in columns:
        shown.add_column(name, justify="left" if name in words else "right")
    return shown
