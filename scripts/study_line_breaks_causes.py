"""What breaks rest on: a line taken for a longer or a shorter one, and the count taken away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from study_line_breaks_rows import COUNT, NEAR, SHAPES, logits_of, probe_batch
from torch import Tensor
from torch.nn.functional import cross_entropy

from circuitkeep.capture import Backend, Edits
from circuitkeep.circuits import Manifold
from circuitkeep.manifolds import manifold_rows
from circuitkeep.manifolds.patching import Subspace, shifted
from circuitkeep.probes import NO_VALUE, ProbeBatch, classes_of
from circuitkeep.tasks.line_breaks import LENGTH

SHIFTS = (-10, -5, 5, 10)


def patching(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """Where the last whole line of each row breaks if it is taken for so much longer or shorter.

    At all words of that line the coordinates in the 6 directions of the count manifold are *set*
    to the mean of another count, or *moved* by as much as that lies from the mean of their own:
    then what else the directions hold stays, and a shift by nothing changes nothing.

    A line counts if the model breaks it where it breaks, and if the rule would break it elsewhere
    were it so much longer: sooner, or (were it shorter) not yet at its end. What is left of the
    line is patched too, the other way round, and random directions to the count's means. *right* is
    the share of them that now break sooner, or not yet; *exact*, where the rule says; *odds*, those
    where a break has become likelier where it now should come, or less likely where it no longer
    should.
    """
    batch = probe_batch(backend, tokenizer, 256)
    newline = tokenizer.convert_tokens_to_ids("\n")
    line, places = last_lines(batch, newline)
    before = logits_of(backend, batch.tokens)
    plain = first_break(before, line, newline)
    end = torch.where(line, places, -1).max(1).values
    left, following = batch.variables["remaining"], batch.variables["next-length"]
    found: dict[str, Any] = {}
    for name, layer, sign in PATCHED:
        one = Manifold(name, layer=layer, **SHAPES[name])
        rows = manifold_rows(backend, probe_batch(backend, tokenizer, 512, 20_000), [one])[name]
        space = Subspace.of(rows)
        ways: dict[str, Callable[[Tensor], Edits]] = {
            "set": lambda at, space=space: space.patched(at[:, 1]),
            "moved": partial(moved, space),
        }
        for number in range(10 if layer == 2 else 0):
            other = Subspace.random(rows, number)
            ways[f"set, random {number}"] = lambda at, space=other: space.patched(at[:, 1])
            ways[f"moved, random {number}"] = partial(moved, other)
        classes = classes_of(one, batch.variables[one.variable]).where(line, NO_VALUE)
        for by in (0, *SHIFTS):
            wanted = shifted(one, classes, sign * by)
            ideal = torch.where(line & (left - by < following + 1), places, LENGTH).amin(1)
            counts = (plain == end) & (ideal != end) if by else plain == end
            decisive = end if by < 0 else ideal
            for way, edit in ways.items():
                at = torch.stack([classes.where(wanted != NO_VALUE, NO_VALUE), wanted], 1)
                after = logits_of(backend, batch.tokens, edit, at)
                now = first_break(after, line, newline)
                gained = log_odds(after, decisive, newline) - log_odds(before, decisive, newline)
                found[f"{name} {layer} {way} {by}"] = {
                    "cases": counts.sum().item(),
                    "right": ((now - plain).sign() == (ideal - end).sign())[counts],
                    "unmoved": (now == plain)[counts],
                    "exact": (now == ideal)[counts],
                    "odds": (gained.sign() == (1 if by > 0 else -1))[counts],
                }
    return {
        name: {
            key: value.float().mean().item() if isinstance(value, Tensor) else value
            for key, value in one.items()
        }
        for name, one in found.items()
    }


PATCHED = (("count", 1, 1), ("count", 2, 1), ("remaining", 2, -1))
"""Which manifold after which layer, and which way it goes if the line is longer."""


def moved(space: Subspace, at: Tensor) -> Edits:
    """Move from the mean of class ``at[:, 0]`` as far as it is to that of ``at[:, 1]``."""
    here = (at != NO_VALUE).all(1)[..., None]
    points = space.points[at.clamp(min=0)]
    step = ((points[:, 1] - points[:, 0]) * here) @ space.frame.mT
    return Edits(resid={space.layer: lambda own: own + step.to(own)})


def log_odds(logits: Tensor, position: Tensor, newline: int) -> Tensor:
    """Of a break rather than anything else, after the token at `position` of each row."""
    inside = position.clamp(max=logits.shape[1] - 1)
    log_probs = logits[torch.arange(len(logits)), inside].log_softmax(1)[:, newline]
    return log_probs - torch.log1p(-log_probs.exp().clamp(max=1 - 1e-6))


def last_lines(batch: ProbeBatch, newline: int) -> tuple[Tensor, Tensor]:
    """The words of the last line of each row that has an end; and all positions."""
    places = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
    breaks = batch.tokens == newline
    number = breaks.cumsum(1)
    return (number == number[:, -1:] - 1) & ~breaks, places


def first_break(logits: Tensor, line: Tensor, newline: int) -> Tensor:
    """The first word of the line at which a break is the likeliest; `LENGTH` for none."""
    places = torch.arange(logits.shape[1])
    return torch.where(line & (logits.argmax(2) == newline), places, LENGTH).amin(1)


def ablation(backend: Backend, tokenizer: Any) -> dict[str, Any]:
    """The coordinates in the count manifold's 6 directions set to their mean at all words."""
    batch = probe_batch(backend, tokenizer, 256)
    newline = tokenizer.convert_tokens_to_ids("\n")
    found = {"none": _kept(logits_of(backend, batch.tokens), batch, newline)}
    for layer in range(-1, backend.n_layers):
        one = Manifold("count", layer=layer, **COUNT)
        rows = manifold_rows(backend, probe_batch(backend, tokenizer, 512, 20_000), [one])["count"]
        spaces = {"count": Subspace.of(rows)}
        spaces |= {f"random {i}": Subspace.random(rows, i) for i in range(10)}
        here = batch.variables["characters"] > 0
        for name, space in spaces.items():
            logits = logits_of(backend, batch.tokens, space.ablated, here)
            found[f"{layer} {name}"] = _kept(logits, batch, newline)
    return found


def _kept(logits: Tensor, batch: ProbeBatch, newline: int) -> dict[str, float]:
    """Line breaks, places near a line's end, and words that come well inside of a line."""
    asked = batch.answer_row, batch.answer_position
    left = batch.variables["remaining"][:, :-1]
    word = (batch.variables["next-length"][:, :-1] >= 0) & (batch.tokens[:, 1:] != newline)
    chosen = logits[:, :-1].argmax(2)
    inside = word & (left >= NEAR)
    near = word & (left >= 0) & (left < NEAR)
    nats = cross_entropy(logits[:, :-1][inside], batch.tokens[:, 1:][inside])
    return {
        "breaks": (logits[asked].argmax(1) == newline).float().mean().item(),
        "left_alone": (chosen != newline)[near].float().mean().item(),
        "words": (chosen == batch.tokens[:, 1:])[inside].float().mean().item(),
        "word_nats": nats.item(),
    }
