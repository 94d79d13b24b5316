"""The figures of `study_line_breaks`, part by part, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def table(titles: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Columns under their titles: words on the left, numbers with three decimals on the right."""
    cells = [
        titles,
        *([f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def accuracy(found: Found) -> str:
    """Beside the best that any predictor could; then the widths with the lowest shares."""
    titles = ("widths", "where", "breaks", "predicted", "best", "near", "left alone", "best")
    rows = []
    for split, places in found.items():
        for place, by in places.items():
            if place != "by width":
                model, best = by["model"], by["best"]
                rows.append(
                    (
                        split,
                        place,
                        model["breaks"],
                        model["predicted"],
                        best["predicted"],
                        model["near"],
                        model["left_alone"],
                        best["left_alone"],
                    )
                )
    text = table(titles, rows)
    for split, places in found.items():
        lowest = sorted(places["by width"].items(), key=lambda item: item[1])[:3]
        text += f"\n{split}, lowest: " + ", ".join(f"width {w} {v:.3f}" for w, v in lowest)
    return text


def shapes(found: Found) -> str:
    """A line per manifold and layer."""
    titles = ("after", "explained", "dim 95%", "of signal", "RMSE", "guessing", "turn")
    rows = (
        (
            name,
            one["explained"],
            one["dimension"],
            one["signal_dimension"],
            *one["probe"][:2],
            one["signal_turn"],
        )
        for name, one in found.items()
    )
    return table(titles, rows)


def heads(found: Found) -> str:
    """A line per head, the costliest first: what ablating it costs, and where it attends."""
    names = sorted(found["ablation_nats"], key=lambda head: -found["ablation_nats"][head])
    seen = found["attention"]
    kinds = list(next(iter(seen.values())))
    text = table(
        ("head", "ablated nats", *(kind.replace("newline at", "nl") for kind in kinds)),
        [(h, found["ablation_nats"][h], *(seen[h][kind] for kind in kinds)) for h in names],
    )
    titles = ("head", "match", "offset", "other rows", "random mean", "random 99%", "stream")
    rows = (
        (
            one["head"],
            one["correlation"],
            one["offset"],
            one["held_out"],
            one["random_mean"],
            one["random_limit"],
            one["stream"],
        )
        for one in found["alignments"]
    )
    return text + "\n\n" + table(titles, rows)


def together(found: Found) -> str:
    """A line per set, with the range over random ones."""
    rows = (
        (name, " ".join(one["heads"]), one["nats"], min(one["random"]), max(one["random"]))
        for name, one in found.items()
    )
    return table(("set", "heads", "nats per break", "random from", "to"), rows)


def hyperplane(found: Found) -> str:
    """A line per layer, under what is reached without the stream."""
    rows = ((layer, one["samples"], one["means"]) for layer, one in found["layers"].items())
    alone = ", ".join(f"{name} {share:.3f}" for name, share in found["alone"].items())
    return (
        f"{found['places']} places, {found['pairs']} pairs; the same answer everywhere "
        f"{found['most']:.3f}, the best rule of one variable: {alone}\n"
        + table(("after layer", "single places", "means of pairs"), rows)
    )


def patching(found: Found) -> str:
    """A line per layer and shift; random subspaces as a range."""
    titles = ("manifold, after layer, shift", "cases", "right direction", "unmoved", "as the rule")
    titles = (*titles, "odds")
    rows = [
        (name, one["cases"], one["right"], one["unmoved"], one["exact"], one["odds"])
        for name, one in found.items()
        if "random" not in name
    ]
    return table(titles, rows) + "\n" + _random(found, ("right", "odds"))


def ablation(found: Found) -> str:
    """A line per layer; random subspaces as ranges."""
    titles = ("after layer, subspace", "breaks", "left alone", "words", "nats of words")
    rows = [
        (name, one["breaks"], one["left_alone"], one["words"], one["word_nats"])
        for name, one in found.items()
        if "random" not in name
    ]
    return table(titles, rows) + "\n" + _random(found, ("breaks", "words", "word_nats"))


def _random(found: Found, keys: Sequence[str]) -> str:
    """Ranges over the random subspaces that stand for one of the count's."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for name, one in found.items():
        before, random, after = name.partition("random ")
        if random:
            groups.setdefault(" ".join([before.strip(), *after.split()[1:]]), []).append(one)
    lines = []
    for name, ones in groups.items():
        ranges = (
            f"{key} {min(one[key] for one in ones):.3f} to {max(one[key] for one in ones):.3f}"
            for key in keys
        )
        lines.append(f"{name}, {len(ones)} random subspaces: " + ", ".join(ranges))
    return "\n".join(lines)


RENDERED: dict[str, Callable[[Found], str]] = {
    "accuracy": accuracy,
    "shapes": shapes,
    "heads": heads,
    "together": together,
    "hyperplane": hyperplane,
    "patching": patching,
    "ablation": ablation,
}
