"""How a small model knows where a line breaks: what it gets right, and what that rests on.

The model of ``model=linebreaks``, trained first if need be, on text and widths that its training
never held:

- accuracy: line breaks predicted, beside the best that any predictor could;
- shapes: the manifolds of characters and width after each layer;
- heads: those that match characters with the lengths of earlier lines, beside random ones;
- together: what sets of heads cost, beside random sets;
- hyperplane: whether one linear rule in the stream tells if the next word fits;
- patching: where the model breaks a line if it takes the line for a longer or a shorter one;
- ablation: what is lost without the subspace of characters, and how little else.

Each part is written to OUTPUT/PART.json and read from there if it is there.

    python scripts/study_line_breaks.py [PART ...] [--seed 0] [--output outputs/line-breaks]
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from study_line_breaks_causes import ablation, patching
from study_line_breaks_report import RENDERED
from study_line_breaks_rows import NEAR, SHAPES, logits_of, probe_batch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from circuitkeep.capture import Backend, Sites, attach, probe_mode
from circuitkeep.capture.models import quiet
from circuitkeep.causal.ablation import ablation_effect
from circuitkeep.circuits import Head, Manifold
from circuitkeep.evals.circuit import score_heads
from circuitkeep.files import replacing
from circuitkeep.geometry.alignment import alignments
from circuitkeep.geometry.class_means import class_means
from circuitkeep.geometry.manifolds import manifold_shape
from circuitkeep.manifolds import manifold_rows, manifold_samples
from circuitkeep.probes import NO_VALUE, ProbeBatch, Split
from circuitkeep.probes.line_text import USUAL, WORDS, successors
from circuitkeep.probes.lines import Lines, draw_lines
from circuitkeep.tasks.line_breaks import LENGTH, load_line_breaks

FIRST_WORD = 3
"""Token number of the first of `WORDS`."""


def lines_of(tokenizer: Any, split: Split, rows: int, seed: int = 10_000) -> Lines:
    """Rows of walks in lines."""
    return draw_lines(tokenizer, rows, LENGTH, split, seed, bos=tokenizer.bos_token_id)


def width_bounds(lines: Lines) -> tuple[Tensor, Tensor]:
    """The narrowest and widest lines that the tokens so far allow, at each position.

    No line is wider than the width, and each that has ended would be with its next word.
    """
    low = lines.characters.cummax(1).values.clamp(min=20)
    ended = torch.zeros_like(lines.newline)
    ended[:, 1:] = lines.newline[:, :-1]
    before = lines.characters.roll(2, 1)
    high = torch.where(ended, before + lines.characters, 80).cummin(1).values.clamp(max=80)
    return low, high


def best_predictor(lines: Lines) -> tuple[Tensor, Tensor]:
    """Whether a break is likelier than any word, for one who knows how the text is made.

    Before it has read, every width is as likely. It knows which word usually follows, and that any
    other may.

    Returns:
        Its choice at each word; and whether it is decided, that is whether the usual next word
        fits or does not fit in all widths that the tokens so far allow.
    """
    low, high = width_bounds(lines)
    lengths = torch.tensor([len(word) for word in WORDS])
    word = (lines.tokens - FIRST_WORD).clamp(min=0)
    usual = lengths[successors()[word]]
    # Of each length of the next word, the share of the possible widths in which it fits.
    needed = lines.characters[..., None] + 1 + torch.arange(int(lengths.max()) + 1)
    fitting = (high[..., None] - torch.maximum(needed, low[..., None]) + 1).clamp(min=0)
    fits = fitting / (high - low + 1)[..., None]
    usual_fits = fits.gather(2, usual[..., None])[..., 0]
    any_breaks = ((1 - fits) * torch.bincount(lengths) / len(WORDS)).sum(2)
    breaks = USUAL * (1 - usual_fits) + (1 - USUAL) * any_breaks
    stays = (USUAL + (1 - USUAL) / len(WORDS)) * usual_fits
    return breaks > stays, (usual_fits == 0) | (usual_fits == 1)


def shares(chosen: Tensor, lines: Lines, where: Tensor) -> dict[str, float]:
    """How many true breaks are predicted, and how many places near a line's end are left alone."""
    breaks = lines.breaks & where
    near = where & ~lines.breaks & (lines.width - lines.characters < NEAR)
    return {
        "breaks": breaks.sum().item(),
        "predicted": chosen[breaks].float().mean().item(),
        "near": near.sum().item(),
        "left_alone": 1 - chosen[near].float().mean().item(),
    }


def accuracy(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Newline accuracy at all breaks and at others, on held-out and on training widths."""
    found: dict[str, Any] = {}
    newline = tokenizer.convert_tokens_to_ids("\n")
    for split in ("held_out", "train"):
        lines = lines_of(tokenizer, split, 1024)
        chosen = logits_of(backend, lines.tokens).argmax(2) == newline
        best, decided = best_predictor(lines)
        # The row's last token has no next one to be judged by.
        asked = lines.next_length >= 0
        asked[:, -1] = False
        places = {
            "all": asked,
            "from the fourth line on": asked & (lines.line >= 3),
            "decided": asked & decided,
        }
        found[split] = {
            place: {
                "model": shares(chosen, lines, where),
                "best": shares(best, lines, where),
            }
            for place, where in places.items()
        }
        found[split]["by width"] = {
            width: shares(chosen, lines, asked & (lines.width == width))["predicted"]
            for width in lines.width[:, -1].unique().tolist()
        }
    return found


def shapes(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Every manifold after every layer; -1 is what enters the first."""
    batch = probe_batch(backend, tokenizer, 512)
    found = {}
    for name, settings in SHAPES.items():
        for layer in range(-1, backend.n_layers):
            one = Manifold(name, layer=layer, **settings)
            rows = manifold_rows(backend, batch, [one])[name]
            shape = manifold_shape(rows, manifold_samples(backend, batch, [one])[name])
            found[f"{name} {layer}"] = asdict(shape)
    return found


def heads(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Heads that match characters so far with the lengths of earlier lines; what ablating costs."""
    here, there = (probe_batch(backend, tokenizer, 256, seed) for seed in (10_000, 20_000))
    manifolds = [
        Manifold("count", "characters", 0, (11, 70), 3),
        Manifold("line-length", "line-length", 0, (17, 70), 3),
    ]
    means = [class_means(backend, batch, manifolds) for batch in (here, there)]
    every = [Head(i, j) for i in range(backend.n_layers) for j in range(backend.n_heads)]
    found = alignments(
        backend,
        (means[0]["count"], means[1]["count"]),
        (means[0]["line-length"], means[1]["line-length"]),
        every,
    )
    scores = {
        role: values.nanmean(0)
        for role, values in score_heads(backend, bins_of(here), list(ROLES + BINS)).items()
    }
    costs = {str(head): ablation_effect(backend, [head], here).mean().item() for head in every}
    return {
        "alignments": [asdict(one) | {"head": str(one.head)} for one in found],
        "attention": {
            str(head): {role: one[head.layer, head.index].item() for role, one in scores.items()}
            for head in every
        },
        "ablation_nats": costs,
    }


ROLES = ("newline", "line", "boundary")
BINS = (*(f"newline at {n}" for n in range(0, 60, 10)), "full", "empty")
"""Attention to the last line break by characters since then; to any by what is left of the line."""


def bins_of(batch: ProbeBatch) -> ProbeBatch:
    """The rows with `ROLES` and `BINS` for targets."""
    count, left = batch.variables["characters"][..., None], batch.variables["remaining"][..., None]
    newline = batch.targets["newline"]
    breaks = (batch.variables["line-length"] != NO_VALUE)[:, None, :]
    earlier = breaks.expand_as(newline).tril(-1) & (count > 0)
    targets = dict(batch.targets)
    for name in BINS[:-2]:
        low = int(name.split()[-1])
        targets[name] = newline & (count > low) & (count <= low + 10)
    targets["full"] = earlier & (left >= 0) & (left < 6)
    targets["empty"] = earlier & (left >= 15)
    return replace(batch, targets=targets)


def together(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Heads ablated together: those of the circuit, and those that look back as the line fills.

    Beside each set ten random ones of as many of the other heads.
    """
    batch = probe_batch(backend, tokenizer, 128)
    every = [Head(i, j) for i in range(backend.n_layers) for j in range(backend.n_heads)]
    found = score_heads(backend, bins_of(batch), ["full", "empty"])
    rise = (found["full"] - found["empty"]).nanmean(0)
    rising = sorted(every, key=lambda head: -rise[head.layer, head.index].item())[:RISING]
    sets = {"circuit": COUNTING, "look back as the line fills": tuple(rising)}
    kept = {}
    for name, heads in sets.items():
        others = [head for head in every if head not in (*COUNTING, *rising)]
        draw = random.Random(0)
        kept[name] = {
            "heads": [str(head) for head in heads],
            "nats": ablation_effect(backend, heads, batch).mean().item(),
            "random": [
                ablation_effect(backend, draw.sample(others, len(heads)), batch).mean().item()
                for _ in range(10)
            ],
        }
    return kept


COUNTING = (Head(2, 0), Head(2, 1))
"""Those whose ablation costs most, alone."""

RISING = 4
"""How many that look back as the line fills."""


def logistic(x: Tensor, y: Tensor, decay: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """The linear rule that best tells `y` by logistic regression."""
    centre, scale = x.mean(0), x.std(0) + 1e-6
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def side(x: Tensor) -> Tensor:
        return ((x - centre) / scale).double() @ weights[1:] + weights[0]

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(side(x), y.double())
        value = value + decay * weights[1:].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda x: side(x).detach()


def hyperplane(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Whether the next word fits, by one linear rule learned on half of the rows.

    Only where less than `NEAR` is left. Samples are single places, means are those of all places
    with the same characters left and the same next word's length; their rule is learned on half of
    such pairs and judged on the others.
    """
    batch = probe_batch(backend, tokenizer, 512)
    left, following = batch.variables["remaining"], batch.variables["next-length"]
    row, position = ((left >= 0) & (left < NEAR) & (following >= 0)).nonzero(as_tuple=True)
    left, following = left[row, position], following[row, position]
    breaks = left < following + 1
    learned = row < 256
    pairs, which = torch.stack([left, following], 1).unique(dim=0, return_inverse=True)
    of_pairs = pairs[:, 0] < pairs[:, 1] + 1
    some = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0)) < 0.5
    found = {}
    for layer in range(-1, backend.n_layers):
        stream = resid(backend, batch.tokens, layer)[row, position]
        side = logistic(stream[learned], breaks[learned])(stream[~learned])
        means = torch.zeros(len(pairs), stream.shape[1]).index_add_(0, which, stream)
        means /= which.bincount()[:, None]
        of_means = logistic(means[some], of_pairs[some])(means[~some])
        found[str(layer)] = {
            "samples": ((side > 0) == breaks[~learned]).float().mean().item(),
            "means": ((of_means > 0) == of_pairs[~some]).float().mean().item(),
        }
    most = max(breaks.float().mean().item(), 1 - breaks.float().mean().item())
    # What the best rule of the characters left alone, or of the next length alone, gets.
    alone = {
        name: sum(
            max(breaks[values == v].sum().item(), (~breaks[values == v]).sum().item())
            for v in values.unique().tolist()
        )
        / len(values)
        for name, values in (("remaining", left), ("next-length", following))
    }
    return {"layers": found, "places": len(row), "pairs": len(pairs), "most": most, "alone": alone}


@torch.no_grad()
def resid(backend: Backend, tokens: Tensor, layer: int) -> Tensor:
    """The residual stream after a layer."""
    parts = []
    for part in tokens.split(64):
        with probe_mode(backend.model), backend.capture(Sites(resid=(layer,))) as captured:
            backend.forward(part)
        parts.append(captured.resids[layer])
    return torch.cat(parts)


PARTS = {
    "accuracy": accuracy,
    "shapes": shapes,
    "heads": heads,
    "together": together,
    "hyperplane": hyperplane,
    "patching": patching,
    "ablation": ablation,
}


def main() -> None:
    """Measure the parts that are not there yet, and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    parser.add_argument("--output", type=Path, default=Path("outputs/line-breaks"))
    default = os.environ.get("CIRCUITKEEP_CACHE", "~/.cache/circuitkeep")
    parser.add_argument("--cache", type=Path, default=Path(default).expanduser())
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    model, tokenizer = load_line_breaks(arguments.cache, arguments.seed)
    backend = attach(model)
    for part in arguments.parts:
        file = arguments.output / f"seed{arguments.seed}" / f"{part}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            found = PARTS[part](backend, tokenizer)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(found, indent=1))
        print(f"\n== {part} ({file})")
        print(RENDERED[part](json.loads(file.read_text())))


if __name__ == "__main__":
    main()
