"""Which heads bring a name to its logit, and does cutting their edges do what is predicted?

For every prompt of the name-copying probe (all its templates and names, up to where the name's
first token is predicted): the rank of a head's edge to the earlier name among all edges of heads;
what the frozen pass says that cutting edges does to the name's logit; what it does in the true
model. Then the logit by the number of heads passed, and what the head looks for. Prompts are told
apart by whether the name's first token begins with the blank ("▁S", "ar", "ah"), or follows it
("▁", "P", "a", "ul"). ``ioi``: the logit of circuitkeep's own attention-only model by the number of
heads passed, and the pairs of heads. Prints Markdown; two minutes on one core.

    python scripts/study_head_graphs.py stories260k --model ../shared/models/stories260k
    python scripts/study_head_graphs.py ioi
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import bootstrap

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.models import load_model_and_tokenizer
from circuitkeep.circuits import Head
from circuitkeep.graphs.cuts import Cut, measured_logits, predicted_change
from circuitkeep.graphs.expansion import SOURCES, expand, mean_expansion
from circuitkeep.graphs.frozen import FrozenPass, freeze
from circuitkeep.graphs.head_paths import strongest_paths
from circuitkeep.graphs.heads import edge_values, head_graph
from circuitkeep.graphs.scores import attribute_score
from circuitkeep.graphs.writes import Readout, logit_readout
from circuitkeep.probes import build_probe
from circuitkeep.probing import probe_context
from circuitkeep.tasks.indirect_objects import load_ioi

PROMPT = " Once upon a time, there was a child named Lily. Lily liked to play. One day,"
PROBE = "configs/probe/name_copying.yaml"
HELD = ("nothing", "patterns", "patterns and MLPs")
EDGES = 10
MAIN, OTHER = Head(4, 4), Head(4, 3)
BEGINS, FOLLOWS = "the blank is part of the token", "the blank is a token before it"


@dataclass(frozen=True)
class Case:
    """One prompt: its pass, the tokens of name and other name, and where the name stood.

    The readout is the name's logit less that of `against`, or less the mean of all if None.
    """

    frozen: FrozenPass
    answer: int
    other: int
    keys: tuple[int, ...]
    kind: str
    against: int | None = None

    @property
    def readout(self) -> Readout:
        """In the frozen pass."""
        return logit_readout(self.frozen, self.answer, self.against)

    def read(self, logits: torch.Tensor) -> float:
        """The same of other logits of the last position."""
        rest = logits.mean() if self.against is None else logits[self.against]
        return (logits[self.answer] - rest).item()

    @property
    def last(self) -> int:
        """The last position."""
        return len(self.frozen.tokens) - 1


@dataclass(frozen=True)
class Effect:
    """One cut, in logits."""

    predicted: float
    measured: dict[str, float]


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser(description="heads that bring a name to its logit")
    parser.add_argument("subject", choices=["stories260k", "ioi"])
    parser.add_argument("--model", help="directory of stories260k")
    parser.add_argument("--cache", default=Path.home() / ".cache" / "circuitkeep")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.subject == "ioi":
        print(indirect_objects(options.cache))
        return
    model, tokenizer = load_model_and_tokenizer(options.model)
    backend = attach(model)
    print(example(backend, tokenizer))
    cases = probe_cases(backend, tokenizer)
    counts = {kind: sum(case.kind == kind for case in cases) for kind in (BEGINS, FOLLOWS)}
    print(f"\n## {len(cases)} prompts of {PROBE}\n\n{counts}\n")
    # Names that begin alike are not told apart by their first token.
    told_apart = [replace(c, against=c.other) for c in cases if c.answer != c.other]
    for name, chosen in (
        ("The name's logit, less the mean of all logits", cases),
        ("The name's logit, less that of another name", told_apart),
    ):
        print(f"\n### {name} ({len(chosen)} prompts)\n")
        print(ranks(chosen))
        print("\n" + cuts(backend, chosen))
        print("\n" + expansion(chosen))
    begins = [case for case in cases if case.kind == BEGINS]
    print("\n" + looks_for(backend, begins, MAIN))


def probe_cases(backend: Backend, tokenizer: Any) -> list[Case]:
    """Every template with every name of its split, once; up to the name's first token."""
    probe = build_probe(yaml.safe_load(Path(PROBE).read_text("utf-8")))
    found: dict[tuple[int, ...], Case] = {}
    for split in ("held_out", "train"):
        batch = probe.batch(probe_context(backend, tokenizer), split, 600, 0)
        assert batch.corrupted is not None
        first: dict[int, int] = {}
        for place, row in enumerate(batch.answer_row.tolist()):
            first.setdefault(row, place)
        for row, place in first.items():
            pos = int(batch.answer_position[place])
            tokens = batch.tokens[row, : pos + 1]
            keys = batch.targets["name-mover"][row, pos].nonzero()[:, 0].tolist()
            # What stands in the other name's place where its context holds another one.
            other = int(batch.corrupted.tokens[row, keys[0]])
            if tuple(tokens.tolist()) not in found:
                frozen = freeze(backend, tokens)
                answer = int(batch.answer[place])
                begins = tokenizer.convert_ids_to_tokens([answer])[0].startswith("▁")
                kind = BEGINS if begins else FOLLOWS
                found[tuple(tokens.tolist())] = Case(frozen, answer, other, tuple(keys), kind)
    return list(found.values())


def example(backend: Backend, tokenizer: Any) -> str:
    """The strongest edges and paths of one prompt."""
    tokens = torch.tensor(tokenizer(PROMPT).input_ids)
    words = [tokenizer.decode([token]) for token in tokens.tolist()]
    frozen = freeze(backend, tokens)
    name = tokenizer(" Lily", add_special_tokens=False).input_ids[0]
    keys = [place for place, word in enumerate(words) if word.strip() == "Lily"]
    case = Case(frozen, name, -1, tuple(keys), BEGINS)
    readout = case.readout
    probability = frozen.logits[-1].softmax(-1)[name].item()
    graph = head_graph(frozen, readout)
    edges = edge_values(frozen, readout)
    lines = [
        f"## {PROMPT!r}\n",
        f"Lily: probability {probability:.2f}, logit less the mean {readout.value:.2f}; conserved "
        f"to {graph.imbalance():.1e}. Lily stands at {keys}.\n",
        "| edge of a head | adds to the logit | rank |\n|---|---|---|",
    ]
    count = int(edges.count_nonzero())
    order = edges.abs().flatten().argsort(descending=True)[:count].tolist()
    for rank, place in enumerate(order):
        layer, index, query, key = (int(i) for i in np.unravel_index(place, edges.shape))
        ours = Head(layer, index) == MAIN and query == len(words) - 1 and key in keys
        if rank < 8 or ours:
            lines.append(
                f"| {Head(layer, index)} from {words[query]!r} ({query}) to {words[key]!r} ({key}) "
                f"| {edges[layer, index, query, key]:+.3f} | {rank + 1} of {count} |"
            )
    rivals = {
        word: tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" she", " Tom")
    }
    readouts = {"mean": case}
    readouts |= {word: replace(case, against=token) for word, token in rivals.items()}
    lines.append(
        f"\nCutting {MAIN}'s edges to both, predicted and measured; logit of Lily less the"
    )
    lines.append("\n| cut | held | " + " | ".join(readouts) + " |")
    lines.append("|---|---|" + "---|" * len(readouts))
    for renormalized, how in HOW.items():
        cut = Cut(MAIN, case.last, case.keys, renormalized)
        done = [effect(backend, one, cut) for one in readouts.values()]
        for held in HELD:
            cells = (f"{one.predicted:+.2f} → {one.measured[held]:+.2f}" for one in done)
            lines.append(f"| {how} | {held} | " + " | ".join(cells) + " |")
    lines.append("\n| path | adds to the logit |\n|---|---|")
    for path in strongest_paths(frozen, readout, count=10):
        way, value = str(path).rsplit(": ", 1)
        lines.append(f"| {way} | {value} |")
    return "\n".join(lines)


HOW = {True: "others take over", False: "lost"}


def ranks(cases: list[Case]) -> str:
    """Where heads' edges to the earlier name rank among all edges of heads, by size."""
    lines = [
        "| edge to the earlier name | prompts | attention paid | adds | median rank | first "
        "| first three | first ten |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, chosen in groups(cases).items():
        for head in (MAIN, OTHER):
            places, adds, paid = [], [], []
            for case in chosen:
                edges = edge_values(case.frozen, case.readout)
                at = head.layer, head.index, -1, list(case.keys)
                places.append(int((edges.abs() > edges[at].abs().max()).sum()) + 1)
                adds.append(edges[at].sum().item())
                paid.append(case.frozen.patterns[at].sum().item())
            row = np.array(places)
            shares = " | ".join(f"{np.mean(row <= most):.0%}" for most in (1, 3, 10))
            lines.append(
                f"| {head}; {kind} | {len(row)} | {np.mean(paid):.2f} | {np.mean(adds):+.2f} "
                f"| {np.median(row):.0f} | {shares} |"
            )
    return "\n".join(lines)


def groups(cases: list[Case]) -> dict[str, list[Case]]:
    """The prompts by how the tokenizer cuts their name, and all of them."""
    kinds = {kind: [case for case in cases if case.kind == kind] for kind in (BEGINS, FOLLOWS)}
    return kinds | {"all prompts": cases}


def cuts(backend: Backend, cases: list[Case]) -> str:
    """Predicted and measured, for heads' edges to the name and for each prompt's strongest."""
    lines = [
        "| cut | held in the true model | cuts | predicted | measured | measured / predicted "
        "| same sign | correlation |",
        "|---|---|---|---|---|---|---|---|",
    ]

    found = groups(cases)
    named = {BEGINS: MAIN, FOLLOWS: OTHER, "all prompts": MAIN}
    for renormalized, how in HOW.items():
        rows = {}
        for kind, head in named.items():
            rows[f"{head} to the name, {how}; {kind}"] = [
                [effect(backend, case, Cut(head, case.last, case.keys, renormalized))]
                for case in found[kind]
            ]
        rows[f"each prompt's {EDGES} strongest edges, {how}"] = [
            [effect(backend, case, cut) for cut in strongest_cuts(case, renormalized)]
            for case in cases
        ]
        lines += [table_row(what, held, row) for what, row in rows.items() for held in HELD]
    return "\n".join(lines)


def strongest_cuts(case: Case, renormalized: bool) -> list[Cut]:
    """Of edges that are not all that a head attends to."""
    edges = edge_values(case.frozen, case.readout)
    edges = edges.where(case.frozen.patterns < 0.999, 0.0)
    order = edges.abs().flatten().argsort(descending=True)[:EDGES].tolist()
    places = [np.unravel_index(place, edges.shape) for place in order]
    return [
        Cut(Head(int(layer), int(index)), int(query), (int(key),), renormalized)
        for layer, index, query, key in places
    ]


def effect(backend: Backend, case: Case, cut: Cut) -> Effect:
    """What a cut does to the case's readout."""
    before = case.read(case.frozen.logits[-1])
    measured = {
        held: case.read(measured_logits(backend, case.frozen, [cut], held)[-1]) - before
        for held in HELD
    }
    return Effect(predicted_change(backend, case.frozen, case.readout, cut), measured)


def table_row(what: str, held: str, rows: list[list[Effect]]) -> str:
    """Of all cuts together; prompts are drawn anew for the interval."""
    predicted = np.array([[one.predicted for one in row] for row in rows])
    measured = np.array([[one.measured[held] for one in row] for row in rows])
    # The slope through 0: of one cut per prompt about the ratio of the means.
    products, squares = (measured * predicted).sum(1), np.square(predicted).sum(1)
    drawn = bootstrap(
        (products, squares),
        lambda one, other, axis: one.sum(axis) / other.sum(axis),
        paired=True,
        method="percentile",
        rng=0,
    )
    low, high = drawn.confidence_interval
    ratio = products.sum() / squares.sum()
    signs = np.mean(np.sign(predicted) == np.sign(measured))
    correlation = np.corrcoef(predicted.ravel(), measured.ravel())[0, 1]
    return (
        f"| {what} | {held} | {predicted.size} | {predicted.mean():+.3f} | {measured.mean():+.3f} "
        f"| {ratio:.2f} [{low:.2f}, {high:.2f}] | {signs:.0%} | {correlation:.2f} |"
    )


def expansion(cases: list[Case]) -> str:
    """The readout by the number of heads passed, mean over prompts."""
    mean = mean_expansion([expand(case.frozen, case.readout) for case in cases])
    passed = mean.parts.shape[1]
    lines = [
        f"By the number of heads passed; mean {mean.value:.2f}\n",
        "| from | " + " | ".join(str(count) for count in range(passed)) + " |",
        "|---|" + "---|" * passed,
    ]
    for source, row, shares in zip(SOURCES, mean.parts, mean.shares, strict=True):
        cells = (f"{part:+.2f} ({share:+.0%})" for part, share in zip(row, shares, strict=True))
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def looks_for(backend: Backend, cases: list[Case], head: Head) -> str:
    """What makes the head attend to the name's place rather than to others, mean over prompts."""
    sides = {"query": defaultdict(float), "key": defaultdict(float)}
    total = 0.0
    for case in cases:
        found = attribute_score(backend, case.frozen, head, case.last, case.keys[0], contrast=True)
        total += found.score / len(cases)
        for side, amounts in (("query", found.by_query), ("key", found.by_key)):
            for writer, value in amounts.items():
                sides[side][str(writer).split(" at ")[0]] += value / len(cases)
    lines = [
        f"### What {head} looks for\n",
        f"Its score at the name less the mean of its other scores: {total:.2f}\n",
        "| side | largest parts |\n|---|---|",
    ]
    for side, amounts in sides.items():
        best = sorted(amounts.items(), key=lambda item: -abs(item[1]))[:8]
        parts = ", ".join(f"{name} {value:+.2f}" for name, value in best)
        lines.append(f"| {side} | {parts} |")
    return "\n".join(lines)


def indirect_objects(cache: Path) -> str:
    """The attention-only IOI models: answer less distractor, by heads passed."""
    probe = build_probe(yaml.safe_load(Path("configs/probe/ioi.yaml").read_text("utf-8")))
    lines = [
        "| seed | right | answer less distractor | no head | one | two | largest pairs of heads |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in range(3):
        model, tokenizer = load_ioi(cache, seed, progress_bar=False)
        backend = attach(model)
        batch = probe.batch(probe_context(backend, tokenizer), "held_out", 64, 0)
        assert batch.distractor is not None
        expansions, right = [], 0
        pairs: dict[str, float] = defaultdict(float)
        for place, answer in enumerate(batch.answer.tolist()):
            row, pos = int(batch.answer_row[place]), int(batch.answer_position[place])
            frozen = freeze(backend, batch.tokens[row, : pos + 1])
            readout = logit_readout(frozen, answer, int(batch.distractor[place]))
            expansions.append(expand(frozen, readout))
            right += int(frozen.logits[-1].argmax()) == answer
            graph = head_graph(frozen, readout)
            for target, flows in zip(graph.heads.tolist(), graph.flows, strict=True):
                for source, flow in zip(graph.writers, flows.tolist(), strict=True):
                    if source.head is not None:
                        pairs[f"{source.head} → {graph.writers[target].head}"] += flow
        mean = mean_expansion(expansions)
        parts, shares = (values.sum(0).tolist() for values in (mean.parts, mean.shares))
        cells = (f"{part:+.2f} ({share:.0%})" for part, share in zip(parts, shares, strict=True))
        best = sorted(pairs.items(), key=lambda item: -abs(item[1]))[:4]
        largest = ", ".join(f"{pair} {value / len(expansions):+.1f}" for pair, value in best)
        lines.append(
            f"| {seed} | {right / len(expansions):.0%} | {mean.value:.2f} | "
            + " | ".join(cells)
            + f" | {largest} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
