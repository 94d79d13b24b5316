"""The tables of what `study_graphs.py` measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from circuitkeep.circuits import Head
from circuitkeep.functional.inference import mean_interval
from circuitkeep.graphs.choice import DOUBLED, EDGES, RANDOM, STRONG
from circuitkeep.graphs.faithfulness import (
    ANSWERED,
    GAPS,
    GAPS_ANSWERED,
    PREDICTED,
    WORLDS,
    Estimate,
    agreement,
    lost,
    shuffled,
)
from circuitkeep.graphs.matching import Matching

NAME_COLUMNS = (PREDICTED, "true, frozen", "true, free")


def effects_of(
    records: Sequence[Mapping[str, Any]],
    name: str,
    kinds: Sequence[str] | None = None,
    among: bool = False,
) -> list[torch.Tensor]:
    """Per prompt, the effects of the interventions of some kinds (None for all).

    On logits less the mean over the vocabulary, or over the graph's own logits (`among`); then
    prompts with one logit are left out.
    """
    found = []
    for record in records:
        chosen = [i for i, kind in enumerate(record["kinds"]) if kinds is None or kind in kinds]
        values = torch.tensor(record["effects"][name], dtype=torch.double)[chosen]
        if not among:
            found.append(values)
        elif len(record["logits"]) > 1:
            found.append(values - values.mean(1, keepdim=True))
    return found


def print_faithfulness(records: Sequence[Mapping[str, Any]]) -> None:
    """The tables of docs/faithfulness-of-graphs.md."""
    features = (STRONG, RANDOM, DOUBLED)
    points = agreement(*(effects_of(records, PREDICTED) for _ in range(2)))
    counts = [len(record["kinds"]) for record in records]
    size = sum(record["nodes"] for record in records) / len(records)
    active = sum(record["features"] for record in records) / len(records)
    print(
        f"\n{len(records)} prompts, {sum(counts)} interventions ({min(counts)} to {max(counts)} "
        f"each), {points.points} points; {size:.0f} nodes a graph, of which {active:.0f} features"
    )
    for score in ("replacement", "completeness"):
        values = torch.tensor([[record["scores"][score] for record in records]])
        print(f"{score} score: {mean_cell(values)}")
    strong = [
        (change["layer"] == 0, change["pos"] == len(record["prompt"]["tokens"]) - 1)
        for record in records
        for kind, change in zip(record["kinds"], record["interventions"], strict=True)
        if kind == STRONG
    ]
    shares = torch.tensor(strong, dtype=torch.double).mean(0).tolist()
    print("strongest features: {:.0%} in layer 0, {:.0%} at the last position".format(*shares))
    for among in (False, True):
        logits = "less the mean of the graph's logits" if among else "less the mean of all logits"
        for title, kinds in (("all interventions", None), ("features", features)):
            print(f"\nThe graph's prediction against what happens; {title}, {logits}\n")
            print_agreement(records, PREDICTED, kinds, among)
        if not among:
            print(f"\nThe same with the last norm answering; all interventions, {logits}\n")
            print_agreement(records, ANSWERED, None, among)
        print(f"\nBy kind of intervention, {logits}\n")
        print_kinds(records, among)
        print(f"\nWhere the gap comes from, {logits}\n")
        print_gaps(records, GAPS, among)
    print("\nEdges from the earlier name to the answer's logit, name prompts\n")
    print_names(records)
    print("\nWhere the gap comes from, the last norm first, less the mean of all logits\n")
    print_gaps(records, GAPS_ANSWERED, among=False)
    print("\nWith an intercept; all interventions, less the mean of all logits\n")
    header("prediction", "in", "slope", "intercept, logits")
    for prediction in (PREDICTED, ANSWERED):
        for name in WORLDS:
            found = agreement(*(effects_of(records, n) for n in (prediction, name)))
            cells = cell(found.slope_with_intercept), cell(found.intercept, 4)
            print_row(prediction, name, *cells)


def print_agreement(
    records: Sequence[Mapping[str, Any]],
    prediction: str,
    kinds: Sequence[str] | None,
    among: bool,
) -> None:
    """A prediction against every world, and shuffled."""
    names = ("correlation", "signs", "weighted_signs", "slope", "difference")
    header("in", "correlation", "signs", "signs, by size", "slope", "difference")
    x = effects_of(records, prediction, kinds, among)
    for name in WORLDS:
        found = agreement(x, effects_of(records, name, kinds, among))
        print_row(name, *(cell(getattr(found, figure)) for figure in names))
    for name in ("true, frozen", "true, free"):
        y = effects_of(records, name, kinds, among)
        found = [agreement(shuffled(x, seed), y) for seed in range(20)]
        values = [sum(getattr(one, n).value for one in found) / len(found) for n in names]
        print_row(f"{name}; prediction shuffled", *(f"{value:.3f}" for value in values))


def print_kinds(records: Sequence[Mapping[str, Any]], among: bool) -> None:
    """Correlation and slope for every kind of intervention, and for both kinds of prompts."""
    shown = [(PREDICTED, w) for w in ("replacement, frozen", "true, frozen", "true, free")]
    shown += [] if among else [(ANSWERED, "true, free")]
    header("kind", "interventions", *(f"{x} → {y}: {f}" for x, y in shown for f in ("r", "slope")))
    kinds = dict.fromkeys(kind for record in records for kind in record["kinds"])
    parts: list[tuple[str, Sequence[Mapping[str, Any]], list[str] | None]]
    parts = [(kind, records, [kind]) for kind in kinds]
    for prompts in ("names", "samples"):
        some = [record for record in records if record["prompt"]["kind"] == prompts]
        parts.append((f"all, {prompts} alone", some, None))
    for title, some, chosen in parts:
        cells = [str(sum(len(one) for one in effects_of(some, PREDICTED, chosen, among)))]
        for pair in shown:
            found = agreement(*(effects_of(some, name, chosen, among) for name in pair))
            cells += [cell(found.correlation), cell(found.slope)]
        print_row(title, *cells)


def print_names(records: Sequence[Mapping[str, Any]]) -> None:
    """What cutting the edges does that lead to where the answer stood before, by head."""
    found: dict[str, list[list[float]]] = {}
    prompts = [
        record
        for record in records
        if record["prompt"]["kind"] == "names" and record["prompt"]["answer"] in record["logits"]
    ]
    for record in prompts:
        column = record["logits"].index(record["prompt"]["answer"])
        first = record["kinds"].index(EDGES)
        for row, kind in enumerate(record["kinds"]):
            change = record["interventions"][row]
            tokens, answer = record["prompt"]["tokens"], record["prompt"]["answer"]
            if kind == EDGES and tokens[change["key"]] == answer:
                head = str(Head(**change["head"]))
                effects = [record["effects"][n][row][column] for n in NAME_COLUMNS]
                found.setdefault(head, []).append([float(row == first), *effects])
    print(f"{len(prompts)} prompts whose graph has the answer's logit\n")
    columns = (f"{name}, logits" for name in NAME_COLUMNS)
    header("head", "edges among the 4 strongest", "the strongest", *columns, "sign as predicted")
    for head, rows in sorted(found.items(), key=lambda item: -len(item[1])):
        values = torch.tensor(rows, dtype=torch.double)
        same = (values[:, 1].sign() == values[:, -1].sign()).double().mean().item()
        cells = [mean_cell(column[None]) for column in values[:, 1:].T]
        print_row(head, str(len(rows)), f"{int(values[:, 0].sum())}", *cells, f"{same:.0%}")


def print_gaps(
    records: Sequence[Mapping[str, Any]], gaps: Mapping[str, tuple[str, str]], among: bool
) -> None:
    """What each step from the graph to the model changes."""
    header("step", "from", "to", "difference", "slope", "correlation with the graph lost")
    for step, (start, end) in gaps.items():
        x, y = (effects_of(records, name, None, among) for name in (start, end))
        found = agreement(x, y)
        drop = lost(effects_of(records, PREDICTED, None, among), x, y)
        print_row(step, start, end, *map(cell, (found.difference, found.slope, drop)))


def print_matching(matching: Matching) -> None:
    """How many features have a partner."""
    print("\nFeatures of the first transcoder matched with one of the second\n")
    header("layer", "active", "mean correlation", "≥ 0.5", "≥ 0.8", "≥ 0.95")
    for layer in range(len(matching.partner)):
        print_matched(str(layer), matching.of_layer(layer))
    print_matched("all", matching)


def print_matched(name: str, matching: Matching) -> None:
    """One line."""
    shares_of = [f"{matching.shares(least):.1%}" for least in (0.5, 0.8, 0.95)]
    mean = matching.correlation.nanmean().item()
    print_row(name, str(int(matching.active.sum())), f"{mean:.3f}", *shares_of)


def print_stability(
    records: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, Sequence[Mapping[str, Any]]],
    qualities: Mapping[str, Mapping[str, Mapping[str, Any]]],
    checkpoints: Sequence[str],
) -> None:
    """The tables of docs/faithfulness-of-graphs.md."""
    names = [record for record in records if record["prompt"]["kind"] == "names"]
    samples = [record for record in records if record["prompt"]["kind"] == "samples"]
    for title, some in (("name prompts", names), ("samples", samples)):
        print(f"\nThe same prompt, {title} ({len(some)}), positions aligned\n")
        header("against", "nodes", "edges", "rank correlation", "nodes by counts")
        for variant in some[0]["overlaps"]:
            rows = [[draw["positions"] for draw in r["overlaps"][variant]] for r in some]
            counted = [[draw["counts"] for draw in r["overlaps"][variant]] for r in some]
            cells = [mean_cell(means(rows, key)) for key in ("nodes", "edges", "rank")]
            print_row(variant, *cells, mean_cell(means(counted, "nodes")))
    print("\nDifferent prompts, by counts unless it is said\n")
    header("pairs", "number", "nodes", "edges", "rank correlation")
    for name, found in pairs.items():
        print_row(name, str(len(found)), *(pair_cell(found, k) for k in ("nodes", "edges", "rank")))
    print("\nThe transcoder on each checkpoint, and its graphs of the name prompts\n")
    texts = list(next(iter(qualities.values())))
    header(
        "checkpoint",
        *(f"{text}: {figure}" for text in texts for figure in ("explained", "recovered", "L0")),
        "replacement score",
        "completeness score",
        "name's log probability",
    )
    for name in ("base", *checkpoints):
        cells = []
        for text in texts:
            of = qualities[name][text]
            keys = ("mean_explained_variance", "recovered", "mean_active_per_token")
            cells += [f"{of[key]:.3f}" for key in keys]
        for key in ("replacement", "completeness", "answer_log_prob"):
            cells.append(mean_cell(torch.tensor([[record[name][key] for record in names]])))
        print_row(name, *cells)


def pair_cell(found: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean over pairs and its 95% interval over prompts, which are drawn, not the pairs."""
    values = torch.tensor([one[key] for one in found], dtype=torch.double)
    mean = f"{values.nanmean().item():.3f}"
    if not found[0]["pair"]:
        return f"{mean} ({values.min().item():.3f} to {values.max().item():.3f})"
    pair = torch.tensor([one["pair"] for one in found])
    prompts = int(pair.max()) + 1
    used = pair.unique()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(used), (1000, len(used)), generator=generator)
    times = torch.zeros(1000, prompts, dtype=torch.double)
    times.scatter_add_(1, used[drawn], torch.ones_like(drawn, dtype=torch.double))
    weight = times[:, pair[:, 0]] * times[:, pair[:, 1]] * ~values.isnan()
    each = (weight @ values.nan_to_num()) / weight.sum(1)
    low, high = each.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return f"{mean} [{low:.3f}, {high:.3f}]"


def means(rows: Iterable[Sequence[Mapping[str, float]]], key: str) -> torch.Tensor:
    """Per prompt, the mean over draws: ``group row``."""
    return torch.tensor([[torch.tensor([d[key] for d in draws]).nanmean() for draws in rows]])


def mean_cell(values: torch.Tensor) -> str:
    """Mean and its 95% interval over prompts, of ``group row``."""
    low, high = mean_interval(values[..., None].double())[:, 0].tolist()
    return f"{values.double().nanmean().item():.3f} [{low:.3f}, {high:.3f}]"


def cell(estimate: Estimate, digits: int = 3) -> str:
    """A figure and its interval."""
    value, low, high = (f"{x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def header(*cells: str) -> None:
    """The head of a Markdown table."""
    print_row(*cells)
    print("|---" * len(cells) + "|")


def print_row(*cells: str) -> None:
    """A row of one."""
    print("| " + " | ".join(cells) + " |")
