"""Tables and plots of what `study_rivals.py` ran."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import torch

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from circuitkeep.files import replacing
from circuitkeep.functional import hypervolume

PLAIN, GUARD = "no-guard", "guard"
WORTH = {"task_cost": 0.25, "off_task_cost": 1.0}
"""Cost from which on a run is worth nothing: of what fine-tuning learns without a guard, the share
that is not learned; of what it then costs elsewhere, the share that it costs here."""
KINDS = ("causal", "behaviour")
DRAWN = {"causal": (-0.5, 2.4), "behaviour": (0.0, 1.05)}
"""What of each retention is drawn; the rest is at the edge."""
LOOKS = {"key-value": ("#0072B2", "o"), "contradiction": ("#D55E00", "s")}
"""Okabe and Ito's blue and vermilion, told apart by any eye; and by their marks."""

Run = dict[str, Any]


def report(found: list[Run], titles: Mapping[str, str], plots: Path | None) -> None:
    """Print the tables of every task, and draw the fronts of all.

    Args:
        found: The runs, those without a guard among them; they are given both costs.
        titles: Of the methods, the unguarded run first.
        plots: Folder of the plots.
    """
    add_costs(found)
    tasks = list(dict.fromkeys(one["task"] for one in found))
    for task in tasks:
        runs = [one for one in found if one["task"] == task]
        # What the contradiction asks for is wrong on the base's own data: no cost of its own.
        for cost in WORTH if task == "key-value" else ["task_cost"]:
            print(f"\n{task}, area by {cost}\n\n{areas(runs, titles, cost)}")
        print(f"\n{task}, the best point of each\n\n{best_points(runs, titles)}")
    if plots is not None:
        for kind in KINDS:
            draw(found, titles, kind, plots / f"pareto-{kind}.svg")


def add_costs(found: Iterable[Run]) -> None:
    """Both costs to every run, paired with the unguarded run of its task and seed."""
    found = list(found)
    plain = {(one["task"], one["seed"]): one for one in found if one["method"] == PLAIN}
    for one in found:
        other = plain[one["task"], one["seed"]]
        learned = other["base_task_nats"] - other["task_nats"]
        harmed = other["off_task_nats"] - other["base_off_task_nats"]
        one["task_cost"] = (one["task_nats"] - other["task_nats"]) / learned
        one["off_task_cost"] = (one["off_task_nats"] - one["base_off_task_nats"]) / harmed


def area(runs: Sequence[Run], kind: str, cost: str) -> float:
    """What the runs reach together; whoever does not learn the task reaches nothing."""
    runs = [one for one in runs if one["task_cost"] < WORTH["task_cost"]]
    costs, kept = (torch.tensor([one[name] for one in runs]).double() for name in (cost, kind))
    return hypervolume(costs, kept, WORTH[cost]).item()


def of_seeds(runs: Iterable[Run], method: str) -> list[list[Run]]:
    """The runs of a method, one list per seed, in the order of the grid."""
    runs = [one for one in runs if one["method"] == method]
    seeds = dict.fromkeys(one["seed"] for one in runs)
    return [[one for one in runs if one["seed"] == seed] for seed in seeds]


def areas(runs: Sequence[Run], titles: Mapping[str, str], cost: str) -> str:
    """Markdown: mean and range over seeds of what each reaches, and seed by seed less the guard's.

    The unguarded run belongs to every front, since it needs no method. Bold where every seed is
    better than the guard.
    """
    plain = of_seeds(runs, PLAIN)
    reached = {}
    for method in titles:
        fronts = [a + b for a, b in zip(of_seeds(runs, method), plain, strict=True)]
        reached[method] = [[area(front, kind, cost) for front in fronts] for kind in KINDS]
    lines = ["| | " + " | ".join(f"{kind} | less the guard's" for kind in KINDS) + " |"]
    lines.append("|---" * (1 + 2 * len(KINDS)) + "|")
    for method, title in titles.items():
        cells = [title]
        for ones, guards in zip(reached[method], reached[GUARD], strict=True):
            cells.append(f"{mean(ones):.3f} [{min(ones):.3f}, {max(ones):.3f}]")
            less = [round(one - other, 3) + 0.0 for one, other in zip(ones, guards, strict=True)]
            text = " ".join(f"{one:+.3f}" for one in less)
            cells.append(f"**{text}**" if min(less) > 0 else text if method != GUARD else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def best_points(runs: Sequence[Run], titles: Mapping[str, str]) -> str:
    """Markdown: of each method the point that reaches most by itself, in behaviour.

    Chosen on what is reported, for each method alike.
    """
    columns = ("value", "identity", "causal", "behaviour", "task, nats", "repetition, nats")
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for method, title in titles.items():
        points = zip(*of_seeds(runs, method), strict=True)
        best = max(points, key=lambda point: sum(area([one], *BY_ITSELF) for one in point))
        cells = [title, f"{best[0]['value']:g}" if method != PLAIN else ""]
        for kind in ("identity", *KINDS):
            cells.append(" ".join(f"{one[kind]:.2f}" for one in best))
        cells.append(" ".join(f"{one['task_nats']:.4f}" for one in best))
        cells.append(
            " ".join(f"{one['off_task_nats'] - one['base_off_task_nats']:+.2f}" for one in best)
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BY_ITSELF = ("behaviour", "task_cost")
"""What a single point is chosen by."""


def draw(found: Sequence[Run], titles: Mapping[str, str], kind: str, out: Path) -> None:
    """A panel per method: what is kept over what is given up, with the guard's in every panel.

    Args:
        found: The runs, with their costs.
        titles: Of the methods.
        kind: Of retention.
        out: An SVG, written whole.
    """
    methods = [method for method in titles if method != PLAIN]
    rows = -(-len(methods) // 4)
    height = 2.0 * rows + 0.9
    figure, panels = plt.subplots(
        rows, 4, figsize=(8.3, height), sharex=True, sharey=True, squeeze=False
    )
    for method, panel in itertools.zip_longest(methods, panels.flat):
        if method is None:
            panel.set_visible(False)
            continue
        panel.axhline(1, color="0.8", linewidth=0.8)
        panel.axvspan(WORTH["task_cost"], 9, color="0.92", linewidth=0)
        for task, (color, mark) in LOOKS.items():
            runs = [one for one in found if one["task"] == task]
            if not runs:
                continue
            panel.plot(*middle(of_seeds(runs, GUARD), kind), ":", color=color, alpha=0.8)
            seeds = of_seeds(runs, method)
            for ones in seeds:
                panel.plot(*middle([ones], kind), mark, color=color, ms=3, alpha=0.4, mew=0)
            panel.plot(*middle(seeds, kind), mark, ls="-", color=color, ms=5)
        panel.set_title(titles[method], fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(methods) - 4 : len(methods)]:
        panel.tick_params(labelbottom=True)
    low, high = DRAWN[kind]
    first = panels[0, 0]
    first.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
    first.set(xlim=(-3e-4, 1.4), ylim=(low - 0.05 * (high - low), high))
    first.set_xticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", ".1%", "1%", "10%", "100%"])
    first.minorticks_off()
    lines = [
        Line2D([], [], color=color, marker=mark, label=task)
        for task, (color, mark) in LOOKS.items()
    ]
    lines.append(Line2D([], [], color="0.3", ls=":", label="the guard, on the same task"))
    figure.legend(handles=lines, ncols=3, frameon=False, loc="upper center", fontsize=10)
    figure.supxlabel("not learned, of what fine-tuning learns without a guard", fontsize=10)
    figure.supylabel(f"{kind} retention, held out", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / height))
    with replacing(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def middle(seeds: Sequence[Sequence[Run]], kind: str) -> tuple[list[float], list[float]]:
    """Cost and retention along the grid, the mean over seeds, brought to the plot's edges."""
    points = list(zip(*seeds, strict=True))
    cost = [max(0.0, mean(one["task_cost"] for one in point)) for point in points]
    kept = [mean(one[kind] for one in point) for point in points]
    low, high = DRAWN[kind]
    return cost, [max(low, min(high, one)) for one in kept]
