"""Whether holding the geometry of a model that breaks lines keeps it breaking them.

The model of ``model=linebreaks`` is fine-tuned on text in the same words that follow each other
otherwise and have no line breaks, with each of several penalties at three weights, and at the best
of them for two more seeds of the text. Measured on held-out text and widths; see
docs/geometry-penalty.md. Prints two Markdown tables. Runs that are there already are not repeated;
there are 46, of half a minute on one core.

    python scripts/study_geometry_penalty.py [--output outputs/geometry-penalty]
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy

from circuitkeep.callbacks import CircuitPreservation
from circuitkeep.capture import Backend, attach
from circuitkeep.capture.models import quiet
from circuitkeep.circuits import Circuit, Head, Manifold, Role, save_circuit
from circuitkeep.evals.circuit import score_heads
from circuitkeep.files import replacing
from circuitkeep.manifolds import ManifoldRows, manifold_rows
from circuitkeep.manifolds.drift import drift_estimates
from circuitkeep.penalties import BehaviourKL, GeometryDrift, PatternDivergence, Sum
from circuitkeep.probes import LineBreaks, ProbeBatch, ProbeContext, Split
from circuitkeep.probing import probe_context
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.line_breaks import LineBreakText, load_line_breaks

STEPS, BATCH, LR = 60, 16, 1e-3
WEIGHTS = (0.1, 1.0, 10.0)
MOST_COST = 0.02
"""Of the weights that cost no more than this of the new text, in nats, the one is best that gets
most right about line breaks."""
SEEDS = (0, 1, 2)
"""Of the text; the weights are chosen on the first."""

HELD = (
    Manifold("count", "characters", 2, (2, 72), 3),
    Manifold("remaining", "remaining", 3, (0, 59), 3),
)
"""What the geometry penalties hold: after the layers where they explain most of the stream."""

OTHER = (Manifold("width", "width", 1, (20, 79), 5),)
"""What is measured and held by none."""

CONTROLS = "shape of position (control)", "place of position (control)"
OF_POSITION = tuple(
    Manifold(f"position-{one.layer}", "position", one.layer, (1, 191), 6) for one in HELD
)
"""What the controls hold instead: what has nothing to do with lines, in the same layers."""

EVERY = "KL of every next token"


@dataclass(frozen=True)
class EveryToken(LineBreaks):
    """The same rows, with every next token for an answer: plain self-distillation on them."""

    def batch(self, context: ProbeContext, split: Split, rows: int, seed: int) -> ProbeBatch:
        """See `Probe.batch`."""
        found = super().batch(context, split, rows, seed)
        row, position = found.mask[:, 1:].nonzero(as_tuple=True)
        return replace(
            found,
            answer_row=row,
            answer_position=position,
            answer=found.tokens[row, position + 1],
            distractor=None,
        )


# The same weights for all.
PENALTIES: dict[str, Callable[[], Sum]] = {
    "shape": lambda: Sum({"shape": GeometryDrift("shape")}),
    "place": lambda: Sum({"place": GeometryDrift("place")}),
    "patterns": lambda: Sum({"pattern": PatternDivergence()}),
    "recommended": lambda: Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()}),
    "patterns + shape": lambda: Sum(
        {"pattern": PatternDivergence(), "shape": GeometryDrift("shape")}
    ),
    EVERY: lambda: Sum({"behaviour": BehaviourKL()}),
    CONTROLS[0]: lambda: Sum({"shape": GeometryDrift("shape")}),
    CONTROLS[1]: lambda: Sum({"place": GeometryDrift("place")}),
}
BEFORE, NONE = "before", "no penalty"


class Base:
    """The model before, and all that is measured against it."""

    def __init__(self, cache: Path) -> None:
        self.model, self.tokenizer = load_line_breaks(cache)
        backend = attach(self.model)
        self.circuit = circuit_of(backend, self.tokenizer)
        self.rows = self.probe_rows(backend, 256)
        self.manifolds = manifold_rows(backend, self.rows, [*HELD, *OTHER])
        self.scores = self.role_scores(backend)
        self.newline = self.tokenizer.convert_tokens_to_ids("\n")

    def probe_rows(self, backend: Backend, rows: int) -> ProbeBatch:
        """Text and widths that neither the model nor a penalty has seen."""
        context = probe_context(backend, self.tokenizer)
        return LineBreaks().batch(context, "held_out", rows, 10_000)

    def role_scores(self, backend: Backend) -> dict[str, float]:
        """How much the heads of each role attend to its targets."""
        names = [role.name for role in self.circuit.roles]
        found = score_heads(backend, self.rows, names)
        heads = {role.name: role.heads[0] for role in self.circuit.roles}
        return {
            name: found[name][:, head.layer, head.index].nanmean().item()
            for name, head in heads.items()
        }


def circuit_of(backend: Backend, tokenizer: Any) -> Circuit:
    """The head that attends most to each role's targets, on train rows."""
    rows = LineBreaks().batch(probe_context(backend, tokenizer), "train", 128, 0)
    roles = []
    for name, scores in score_heads(backend, rows, ["newline", "line", "boundary"]).items():
        best = scores.nanmean(0).flatten().argmax().item()
        roles.append(Role(name, (Head(*divmod(int(best), backend.n_heads)),)))
    probe = {"_target_": "circuitkeep.probes.LineBreaks"}
    source = "scripts/study_geometry_penalty.py"
    return Circuit("line-breaks", tuple(roles), probe, "accuracy", source, manifolds=HELD)


def new_text(tokenizer: Any, seed: int) -> LineBreakText:
    """The same words, which follow each other otherwise, without line breaks."""
    return LineBreakText(
        STEPS * BATCH, 64, BATCH, tokenizer=tokenizer, usage=1, widths=(2000, 2010), seed=seed
    )


def trained(base: Base, name: str, weight: float, data: LineBreakText, folder: Path) -> Any:
    """The model after fine-tuning under a penalty, or none."""
    model = copy.deepcopy(base.model)
    callbacks: list[Any] = []
    if name != NONE:
        reference = folder / "references" / f"{file_name(name)}.safetensors"
        held = OF_POSITION if name in CONTROLS else HELD
        guard = CircuitPreservation(
            replace(base.circuit, manifolds=held),
            PENALTIES[name](),
            EveryToken() if name == EVERY else None,
            weight=weight,
            rows_per_step=1,
            pool_rows=256,
            tokenizer=base.tokenizer,
            reference=reference,
        )
        callbacks.append(guard)
    Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=callbacks,
        default_root_dir=folder,
    ).fit(CausalLM(model, lr=LR, warmup_steps=5), data)
    return model.eval()


@torch.no_grad()
def measured(base: Base, model: Any, data: LineBreakText) -> dict[str, Any]:
    """Line breaks, the new text, the geometry and where the heads attend."""
    rows, backend = base.rows, attach(model)
    logits = model(rows.tokens).logits
    asked = rows.answer_row, rows.answer_position
    left = rows.variables["remaining"]
    # Near a line's end, where the next word just fits.
    fits = (left >= 0) & (left < 14) & (rows.variables["next-length"] >= 0)
    fits[asked] = False
    fits[:, -1] = False
    assert data.val_rows is not None
    tokens = data.val_rows.columns["input_ids"]
    now = manifold_rows(backend, rows, [*HELD, *OTHER])
    scores = base.role_scores(backend)
    return {
        "breaks": (logits[asked].argmax(1) == base.newline).float().mean().item(),
        "left_alone": (logits.argmax(2) != base.newline)[fits].float().mean().item(),
        "new_nats": nats(model(tokens).logits, tokens),
        "old_nats": nats(logits, rows.tokens.where(rows.mask, -100)),
        "geometry": {name: geometry(base.manifolds[name], now[name]) for name in now},
        "attention": mean(scores[name] / value for name, value in base.scores.items()),
    }


def nats(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean next-token loss."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()


def geometry(base: ManifoldRows, now: ManifoldRows) -> dict[str, float]:
    """Share of the shape and of the place that is left, less the noise of the prompts."""
    found = drift_estimates(base, now, draws=2)
    return {name: found[name].value for name in ("shape", "place")}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/geometry-penalty"))
    default = os.environ.get("CIRCUITKEEP_CACHE", "~/.cache/circuitkeep")
    parser.add_argument("--cache", type=Path, default=Path(default).expanduser())
    options = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    base = Base(options.cache)
    options.output.mkdir(parents=True, exist_ok=True)
    save_circuit(base.circuit, options.output / "circuit.yaml")
    every = [(BEFORE, 0.0), (NONE, 0.0), *((n, w) for w in WEIGHTS for n in PENALTIES)]
    tried = of_seed(base, SEEDS[0], every, options.output)
    best = [(run["penalty"], run["weight"]) for run in best_of(tried)]
    found = [one for seed in SEEDS for one in of_seed(base, seed, best, options.output)]
    print(table(tried), table(found), sep="\n\n")


def best_of(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each penalty at its best weight."""
    most = next(run["new_nats"] for run in tried if run["penalty"] == NONE) + MOST_COST
    found = []
    for name in (BEFORE, NONE, *PENALTIES):
        runs = [run for run in tried if run["penalty"] == name]
        cheap = [run for run in runs if run["new_nats"] <= most]
        found.append(
            max(cheap, key=lambda run: run["right"])
            if cheap
            else min(runs, key=lambda run: run["new_nats"])
        )
    return found


def of_seed(
    base: Base, seed: int, wanted: list[tuple[str, float]], folder: Path
) -> list[dict[str, Any]]:
    """Runs on one text; those that are there are read."""
    data = new_text(base.tokenizer, seed)

    def run(name: str, weight: float) -> dict[str, Any]:
        model = base.model if name == BEFORE else trained(base, name, weight, data, folder)
        return measured(base, model, data)

    found = []
    for name, weight in wanted:
        file = folder / f"{file_name(name)}-{weight:g}-{seed}.json"
        if not file.is_file():
            result = run(name, weight)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(result, indent=1))
        found.append({"penalty": name, "weight": weight, **json.loads(file.read_text())})
        found[-1]["right"] = (found[-1]["breaks"] + found[-1]["left_alone"]) / 2
    return found


def file_name(penalty: str) -> str:
    """The penalty's name without what file names had better not hold."""
    return "".join(letter for letter in penalty if letter.isalnum() or letter == "+")


COLUMNS = ("right", "breaks", "left_alone", "new_nats", "old_nats", "attention")


def table(found: list[dict[str, Any]]) -> str:
    """Means over the seeds, with the lowest and the highest."""
    shapes = [(one.name, part) for one in (*HELD, *OTHER) for part in ("shape", "place")]
    names = [*COLUMNS, *(f"{name} {part}" for name, part in shapes)]
    lines = [
        "| penalty | weight | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for key in dict.fromkeys((run["penalty"], run["weight"]) for run in found):
        runs = [run for run in found if (run["penalty"], run["weight"]) == key]
        cells = [[run[name] for run in runs] for name in COLUMNS]
        cells += [[run["geometry"][name][part] for run in runs] for name, part in shapes]
        lines.append(f"| {key[0]} | {key[1]:g} | " + " | ".join(map(shown, cells)) + " |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    """The mean, and the ends where there are several."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{ends}"


if __name__ == "__main__":
    main()
