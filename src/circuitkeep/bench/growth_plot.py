"""Draw what the suite ``growth`` found: ``python -m circuitkeep.bench.growth_plot JSON SVG``.

Needs matplotlib, which the extra ``dev`` brings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from circuitkeep.bench.growth import AXES
from circuitkeep.files import replacing

INK, FLOOR = "#1f5fa8", "#b0552b"


def draw(points: Sequence[Mapping[str, Any]], base: Mapping[str, int], out: Path) -> None:
    """A panel per axis: added processor time and the floor, in percent of a plain step.

    Args:
        points: Of ``bench.json``, the base first.
        base: The value of each axis in the base.
        out: An SVG, written whole.
    """
    figure, panels = plt.subplots(1, len(AXES), figsize=(11, 2.9), layout="constrained")
    for axis, panel in zip(AXES, panels, strict=True):
        found = {base[axis]: points[0]}
        found |= {one["value"]: one for one in points if one["axis"] == axis}
        values = sorted(found)
        middle, least, most, floor = (
            [100 * (read(found[value]) - 1) for value in values]
            for read in (
                lambda one: one["cpu_times_plain"]["median"],
                lambda one: one["cpu_times_plain"]["least"],
                lambda one: one["cpu_times_plain"]["most"],
                lambda one: one["floor"],
            )
        )
        panel.fill_between(values, least, most, color=INK, alpha=0.15, linewidth=0)
        panel.plot(values, middle, "o-", color=INK, label="added, median and range")
        panel.plot(values, floor, "--", color=FLOOR, label="operations added")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(values))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlabel(axis)
        if min(least) > 0 and max(middle) > 20 * min(middle):
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=min(0.0, *least))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of a plain step")
    panels[0].legend(frameon=False, fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Read the file, draw, write."""
    source, out = map(Path, sys.argv[1:])
    content = json.loads(source.read_text(encoding="utf-8"))
    base: dict[str, int] = dict(zip(AXES, content["bases"], strict=True))
    draw(content["points"], base, out)


if __name__ == "__main__":
    main()
