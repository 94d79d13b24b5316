"""Is it the circuit that a penalty guards, or would any heads of those layers do?

Three circuits, each in a model that is fine-tuned on a task which does not need it:

- induction: two layers of 8 heads on repeated segments, fine-tuned on a key-value map; the circuit
  is the previous-token head and the three heads above it whose ablation costs most;
- indirect-objects: the model of ``model=ioi`` with 8 heads per layer, fine-tuned on a key-value map
  of its words; the three heads of the second layer whose ablation costs most;
- name-copying: stories260k, fine-tuned on Shakespeare; the heads of the shipped circuit.

Each penalty guards the named heads (3 seeds), and ten different choices of as many other heads of
the same layers. What the *named* circuit keeps is measured on held-out rows. Prints a table
per circuit. Runs that are there already are not repeated.

    python scripts/study_specificity.py [--circuits induction indirect-objects] [--jobs 2]
    python scripts/study_specificity.py --circuits name-copying --model MODEL --text TEXT
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir
from scipy.stats import bootstrap

from circuitkeep.capture import attach
from circuitkeep.capture.models import (
    build_attention_only,
    build_embedded,
    load_model_and_tokenizer,
    quiet,
)
from circuitkeep.causal import MEAN, ablate_each
from circuitkeep.circuits import Circuit, Head, Role, load_circuit, save_circuit
from circuitkeep.cli import train
from circuitkeep.cli.settings import data_module, find_circuit
from circuitkeep.cli.surroundings import config_directory
from circuitkeep.evals import evaluate_capability, measure_circuit, retention
from circuitkeep.files import replacing
from circuitkeep.probes import build_probe
from circuitkeep.probing import probe_context, probe_rows
from circuitkeep.scan import scan
from circuitkeep.scan.partners import partners
from circuitkeep.tasks.indirect_objects import STANDARD, WORDS, IndirectObjects, ioi_tokenizer
from circuitkeep.tasks.repetition import RepeatedSegments
from circuitkeep.tasks.trained_once import Recipe, train_once, train_small

SEEDS = (0, 1, 2)
DRAWS = 10
TOP = 3
"""Heads of the last layer in a circuit that is chosen by what ablation costs."""

HELD_OUT = 256, 10_000
"""Rows that everything is measured on, and their seed."""

CIRCUITS = ("induction", "indirect-objects", "name-copying")
UPSTREAM = "with upstream heads"
READS = "with what they read"
WITH_PATTERNS = "+penalty.loss.terms.pattern._target_=circuitkeep.penalties.PatternDivergence"
PENALTIES = {
    "patterns and outputs": ["penalty=pattern_output"],
    "recommended": ["penalty=recommended", "penalty.rows_per_step=1"],
    # Those that the guarded heads read most are guarded with them.
    UPSTREAM: ["penalty=pattern_output"],
    READS: ["penalty=pattern_output", "task._target_=reading_drift.ReadingLM"],
    "weights": ["penalty=weights"],
    "attribution": ["penalty=attribution"],
    "effect": ["penalty=effect"],
    "patterns and effect": ["penalty=effect", WITH_PATTERNS],
}
KINDS = ("behaviour", "causal", "identity")


@dataclass(frozen=True)
class Run:
    """One fine-tuning: of a subject and seed, with a penalty on the heads of one choice.

    Attributes:
        subject: One of `CIRCUITS`.
        seed: Of the data and the rows; in `induction` of the base model too.
        penalty: One of `PENALTIES`; "none" for none.
        weight: Of the penalty.
        draw: Which choice of other heads; None for the named ones.
    """

    subject: str
    seed: int
    penalty: str = "none"
    weight: float = 0.0
    draw: int | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        heads = "named" if self.draw is None else f"random-{self.draw}"
        penalty = self.penalty.replace(" ", "-")
        return f"{self.subject}-{penalty}-{self.weight:g}-{heads}-{self.seed}"


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--circuits", nargs="+", choices=CIRCUITS, default=CIRCUITS[:2])
    parser.add_argument("--penalties", nargs="+", choices=list(PENALTIES), default=list(PENALTIES))
    parser.add_argument(
        "--weights", nargs="+", type=pair, default=[(1.0, 1.0)], help="of the penalty: NAMED:OTHERS"
    )
    parser.add_argument("--model", type=Path, help="directory of stories260k")
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=150, help="not of name-copying, which has 150")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/specificity"),
        help="with other --steps, another one",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    if "name-copying" in options.circuits and not (options.model and options.text):
        parser.error("name-copying needs --model and --text")
    for subject in options.circuits:
        runs = list(dict.fromkeys(planned(subject, options.penalties, options.weights)))
        # One at a time, lest two processes train the same base model.
        with ProcessPoolExecutor(1) as alone:
            for seed in SEEDS:
                print(alone.submit(describe, subject, seed, options).result(), flush=True)
        with ProcessPoolExecutor(options.jobs) as pool:
            found = list(pool.map(run, runs, itertools.repeat(options)))
        print(f"\n{subject}\n\n{table(dict(zip(runs, found, strict=True)), options)}\n", flush=True)


def pair(text: str) -> tuple[float, float]:
    """Read ``0.3:3``, or ``1`` for ``1:1``."""
    named, _, others = text.partition(":")
    return float(named), float(others or named)


def planned(
    subject: str, penalties: Sequence[str], weights: Sequence[tuple[float, float]]
) -> Iterator[Run]:
    """All runs of a subject."""
    for seed in SEEDS:
        yield Run(subject, seed)
    for penalty, (own, others) in itertools.product(penalties, weights):
        for seed in SEEDS:
            yield Run(subject, seed, penalty, own)
        for draw in range(DRAWS):
            yield Run(subject, SEEDS[draw % len(SEEDS)], penalty, others, draw)


def run(which: Run, options: argparse.Namespace) -> dict[str, float]:
    """Train and measure; what came of it is kept in a file, and not repeated."""
    path = options.output / f"{which.name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    quiet()
    base, overrides, circuit = subject_of(which.subject, which.seed, options)
    folder = options.output / which.name
    held = circuit
    if which.draw is not None:
        # With one base model for all seeds, all draws differ; otherwise those of one seed.
        place = which.draw // len(SEEDS) if which.subject == "induction" else which.draw
        n_heads = load_model_and_tokenizer(base)[0].config.num_attention_heads
        held = other_heads(circuit, n_heads, place)
    if which.penalty == UPSTREAM:
        held = with_upstream(held, base)
    save_circuit(held, folder / "circuit.yaml")
    penalty = ["penalty=none"] if which.penalty == "none" else list(PENALTIES[which.penalty])
    if which.penalty != "none":
        penalty.append(f"penalty.weight={which.weight}")
    if which.penalty == READS:
        held_file = folder / "circuit.yaml"
        penalty += [f"+task.base={base}", f"+task.held={held_file}", f"+task.seed={which.seed}"]
    with initialize_config_dir(str(config_directory()), version_base=None):
        found = _trained(base, circuit, folder, [*overrides, *penalty, f"seed={which.seed}"])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found))
    shutil.rmtree(folder)
    print(which.name, found, flush=True)
    return found


def _trained(
    base: Path, circuit: Circuit, folder: Path, overrides: Sequence[str]
) -> dict[str, float]:
    settings = [
        f"model.path={base}",
        "circuit=file",
        f"circuit.path={folder / 'circuit.yaml'}",
        f"output={folder}",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        # Everything is measured afterwards, on more rows.
        "callbacks.monitor=null",
        "callbacks.checkpoint=null",
        "+trainer.limit_val_batches=0",
    ]
    config = compose("train", [*overrides, *settings])
    train.run(config)
    model, tokenizer = load_model_and_tokenizer(base)
    batch = probe_rows(circuit, attach(model), tokenizer, "held_out", *HELD_OUT)
    before = measure_circuit(attach(model), circuit, batch)
    model, _ = load_model_and_tokenizer(folder / "model")
    kept = retention(measure_circuit(attach(model), circuit, batch), before, circuit)
    data = data_module(config.data, tokenizer)
    data.setup("validate")
    loss = evaluate_capability(model, data.val_dataloader())["loss_nats"]
    return {kind: kept[f"{kind}_retention"] for kind in KINDS} | {"loss_nats": loss}


def subject_of(
    subject: str, seed: int, options: argparse.Namespace
) -> tuple[Path, list[str], Circuit]:
    """The base model, its circuit, and how it is fine-tuned."""
    if subject == "name-copying":
        overrides = ["experiment=stories260k", f"data.train={options.text}"]
        return options.model, overrides, find_circuit("stories260k-name-copying")
    cache = Path.home() / ".cache" / "circuitkeep"
    base = wide_induction(cache, seed) if subject == "induction" else wide_ioi(cache, 0)
    file = options.output / f"{subject}-{base.name}.circuit.yaml"
    if not file.is_file():
        save_circuit(found_circuit(subject, base), file)
    vocabulary = 64 if subject == "induction" else len(WORDS)
    overrides = ["data=key_value", f"data.vocab_size={vocabulary}", "task.lr=3e-3"]
    return base, [*overrides, f"trainer.max_steps={options.steps}"], load_circuit(file)


def wide_induction(cache: Path, seed: int) -> Path:
    """The embedded model with 8 heads per layer instead of 4, each half as wide."""
    recipe = Recipe()

    def train() -> Any:
        rows = recipe.steps * recipe.batch_size
        data = RepeatedSegments(train_rows=rows, batch_size=recipe.batch_size, seed=seed)
        model = _wide(build_embedded(seed), seed, head_dim=8)
        return train_small(model, data, recipe, progress_bar=False)

    return train_once(cache, "embedded-wide", seed, recipe, train)


def wide_ioi(cache: Path, seed: int) -> Path:
    """The model of ``model=ioi`` with 8 heads per layer instead of 4."""

    def train() -> Any:
        rows = STANDARD.steps * STANDARD.batch_size
        data = IndirectObjects(rows, batch_size=STANDARD.batch_size, seed=seed)
        model = _wide(build_attention_only(len(WORDS), seed), seed, head_dim=16)
        for name, parameter in model.named_parameters():
            if ".mlp." in name:  # as in the model that it is a variant of
                torch.nn.init.zeros_(parameter)
        return train_small(model, data, STANDARD, "linear", progress_bar=False)

    return train_once(cache, "ioi-wide", seed, STANDARD, train, ioi_tokenizer())


def _wide(model: Any, seed: int, head_dim: int) -> Any:
    config = copy.deepcopy(model.config)
    config.head_dim, config.num_attention_heads, config.num_key_value_heads = head_dim, 8, 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(config)


def found_circuit(subject: str, base: Path) -> Circuit:
    """The heads of the last layer whose ablation costs most, and who feeds them.

    Each has the role that it scores highest in; rows are train rows.
    """
    model, tokenizer = load_model_and_tokenizer(base)
    backend = attach(model)
    spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
    roles = ("previous-token", "induction")
    if subject == "indirect-objects":
        spec = yaml.safe_load((config_directory() / "probe" / "ioi.yaml").read_text())
        roles = ("name-mover", "s-inhibition")
    probe = build_probe(spec)
    scores = scan(backend, tokenizer, probe, roles)
    rows = probe.batch(probe_context(backend, tokenizer), "train", 256, 0)
    last = [Head(backend.n_layers - 1, index) for index in range(backend.n_heads)]
    costs = ablate_each(backend, last, rows, MEAN).nanmean(0).tolist()
    ranked = sorted(zip(costs, last, strict=True), reverse=True)
    chosen: dict[str, list[Head]] = {}
    for _, head in ranked[:TOP]:
        role = max(roles, key=lambda role: scores.scores[role][head.layer, head.index])
        chosen.setdefault(role, []).append(head)
    if subject == "induction":
        chosen.setdefault("previous-token", []).append(scores.ranked("previous-token")[0][0])
    found = tuple(Role(role, tuple(sorted(heads))) for role, heads in chosen.items())
    return Circuit(subject, found, spec, "accuracy", "scripts/study_specificity.py")


def other_heads(circuit: Circuit, n_heads: int, number: int) -> Circuit:
    """The circuit with other heads of the same layers: of all different choices, one."""
    seen: list[tuple[Head, ...]] = []
    for seed in itertools.count():
        drawn = circuit.with_random_heads(n_heads, seed)
        if drawn.heads not in seen:
            seen.append(drawn.heads)
        if len(seen) > number:
            return drawn
    raise AssertionError


def with_upstream(circuit: Circuit, base: Path) -> Circuit:
    """The circuit and the three earlier heads whose paths into its heads cost most together."""
    model, tokenizer = load_model_and_tokenizer(base)
    backend = attach(model)
    rows = probe_rows(circuit, backend, tokenizer, "train", 64, 0)
    costs: Counter[Head] = Counter()
    for path in partners(backend, rows, circuit.heads):
        if path.sender not in circuit.heads:
            costs[path.sender] += path.cost_nats  # type: ignore[assignment]
    more = [head for head, _ in costs.most_common(TOP)]
    # Their role does not matter to a penalty over all queries.
    heads = {role.name: list(role.heads) for role in circuit.roles}
    heads[circuit.roles[0].name] += more
    return circuit.with_heads(heads, f"{circuit.name}-upstream")


def table(found: Mapping[Run, dict[str, float]], options: argparse.Namespace) -> str:
    """Markdown: named heads, others, and the difference with its 95% interval."""
    plain = {which.seed: one for which, one in found.items() if which.penalty == "none"}
    columns = ["penalty", "weights", *KINDS, "cost, nats"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cells = [_percent([one[kind] for one in plain.values()]) for kind in KINDS]
    loss = np.mean([one["loss_nats"] for one in plain.values()])
    lines.append(f"| none | | {' | '.join(cells)} | loss {loss:.4f} |")
    # Paired with the unguarded run of the same seed, which saw the same batches.
    cost = {w: one["loss_nats"] - plain[w.seed]["loss_nats"] for w, one in found.items()}
    for penalty, weights in itertools.product(options.penalties, options.weights):
        named, others = (
            [w for w in found if (w.penalty, w.weight, w.draw is None) == (penalty, weight, own)]
            for weight, own in zip(weights, (True, False), strict=True)
        )
        cells = []
        for kind in KINDS:
            sides = [[found[w][kind] for w in side] for side in (named, others)]
            cells.append(" ".join([*map(_percent, sides), _difference(sides[0], sides[1], 100, 0)]))
        sides = [[cost[w] for w in side] for side in (named, others)]
        cells.append(
            " ".join(
                [
                    *(f"{np.mean(side):+.4f}" for side in sides),
                    _difference(sides[0], sides[1], 1, 4),
                ]
            )
        )
        lines.append(f"| {penalty} | {weights[0]:g}, {weights[1]:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.0f}%"


def _difference(named: Sequence[float], others: Sequence[float], times: float, digits: int) -> str:
    """Mean of the named less that of the others; both are drawn anew for the interval."""
    done = bootstrap(
        (np.array(named), np.array(others)),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        method="percentile",
        rng=0,
    )
    low, high = done.confidence_interval
    mean = np.mean(named) - np.mean(others)
    return f"{times * mean:+.{digits}f} [{times * low:+.{digits}f}, {times * high:+.{digits}f}]"


def describe(subject: str, seed: int, options: argparse.Namespace) -> str:
    """Train the base model if need be, choose its circuit, and say what its heads do."""
    torch.set_num_threads(1)
    base, _, circuit = subject_of(subject, seed, options)
    model, tokenizer = load_model_and_tokenizer(base)
    backend = attach(model)
    batch = probe_rows(circuit, backend, tokenizer, "held_out", *HELD_OUT)
    choices = DRAWS // len(SEEDS) + 1 if subject == "induction" else DRAWS
    others = [other_heads(circuit, backend.n_heads, number) for number in range(choices)]
    measured = [measure_circuit(backend, one, batch) for one in (circuit, *others)]
    costs = [one.effect_nats.mean().item() for one in measured]
    lines = [f"{subject}, seed {seed}: {base}"]
    for role in circuit.roles:
        layer = role.heads[0].layer
        scores = measured[0].scores[role.name][:, layer].nanmean(0).tolist()
        lines.append(
            f"  {role.name} {' '.join(map(str, role.heads))}; scores in layer {layer}: "
            + " ".join(f"{score:.2f}" for score in scores)
        )
    lines.append(
        f"  ablating them costs {costs[0]:.2f} nats, others {min(costs[1:]):.2f} to "
        f"{max(costs[1:]):.2f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
