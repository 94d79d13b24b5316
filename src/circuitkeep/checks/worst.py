"""The prompts that a check fails on most, and where a head looks there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.causal.answers import answer_log_probs
from circuitkeep.checks.evidence import Evidence
from circuitkeep.checks.judge import measured_values, weakest
from circuitkeep.checks.plan import Check, Plan
from circuitkeep.checks.suite import Examination
from circuitkeep.circuits import Head
from circuitkeep.pages.attention import shown_patterns, token_text
from circuitkeep.probes import ProbeBatch


@dataclass(frozen=True)
class Prompt:
    """Where a head looks from one token of a prompt: the one it misses its targets from most.

    Attributes:
        seed: Of the probe's rows.
        row: Of that seed, from 0.
        value: What the check measured on it.
        tokens: As text, up to the one that the head looks from.
        attention: That it pays to each.
        targets: Positions that it should look at.
        wanted: The answer that the model gives the least to, as text; None without an answer.
        given: What it gives instead; equal to `wanted` where it answers rightly.
    """

    seed: int
    row: int
    value: float
    tokens: tuple[str, ...]
    attention: tuple[float, ...]
    targets: frozenset[int]
    wanted: str | None
    given: str | None


def to_blame(plan: Plan, check: Check, now: Evidence, base: Evidence | None) -> tuple[str, Head]:
    """The role and the head that explain a check best.

    For a check of a role its weakest head; else the head that keeps least of its score in the
    base, or the one with the lowest score where there is no base.
    """
    if check.kind in ("score", "replicates"):
        return check.part, weakest(plan, check.part, now)

    def kept(role: str, head: Head) -> float:
        score = now.measured.score(role, head)
        if base is not None:
            score /= max(base.measured.score(role, head), 1e-6)
        return score if score == score else float("inf")

    pairs = [(role.name, head) for role in plan.circuit.roles for head in role.heads]
    return min(pairs, key=lambda pair: kept(*pair))


def worst_prompts(
    plan: Plan, check: Check, role: str, head: Head, examination: Examination, most: int = 3
) -> tuple[Prompt, ...]:
    """The prompts on which the check's value is lowest and the role has a target.

    Args:
        plan: Whose check it is.
        check: Which failed.
        role: Whose targets are looked for.
        head: Of that role.
        examination: Holds the model and the rows.
        most: How many prompts.
    """
    now, base = examination.evidence(plan), examination.base_evidence(plan)
    values = _by_row(plan, check, role, head, now, base)
    scores = now.measured.scores[role][:, head.layer, head.index]
    usable = ~(values.isnan() | scores.isnan())
    # Of rows that are equally bad, the one that the head misses most.
    places = usable.nonzero()[:, 0].tolist()
    order = sorted(places, key=lambda place: (float(values[place]), float(scores[place])))
    batches = examination.rows(plan)
    found = []
    for place in order[:most]:
        number = int(now.seed[place])
        first = int((now.seed == number).nonzero()[0])
        batch = batches[number].select(torch.tensor([place - first]))
        shown = _look(batch, role, head, examination)
        found.append(Prompt(plan.seeds[number], place - first, float(values[place]), *shown))
    return tuple(found)


def _by_row(
    plan: Plan, check: Check, role: str, head: Head, now: Evidence, base: Evidence | None
) -> Float[Tensor, " row"]:
    """What is lowest where the check fails most."""
    if check.kind in ("replicates", "no_migration"):
        return now.measured.scores[role][:, head.layer, head.index]
    values, reference = measured_values(plan, check, now, base)
    return (values if reference is None else values - reference).nanmean(0)


@torch.no_grad()
def _look(
    batch: ProbeBatch, role: str, head: Head, examination: Examination
) -> tuple[tuple[str, ...], tuple[float, ...], frozenset[int], str | None, str | None]:
    backend, tokenizer = examination.backend, examination.tokenizer
    length = int(batch.mask.sum())
    tokens = batch.tokens[:, :length]
    target = batch.targets[role][0, :length, :length]
    packed = shown_patterns(backend, tokens.to(backend.device), [head])[0]
    pattern = torch.zeros(length, length)
    pattern[tuple(torch.tril_indices(length, length))] = packed.float() / 255
    queries = target.any(1).nonzero()[:, 0]
    query = int(queries[(pattern * target).sum(1)[queries].argmin()])
    return (
        tuple(token_text(tokenizer, int(token)) for token in tokens[0, : query + 1]),
        tuple(pattern[query, : query + 1].tolist()),
        frozenset(target[query].nonzero()[:, 0].tolist()),
        *_answer(batch, backend, tokenizer),
    )


def _answer(batch: ProbeBatch, backend: Backend, tokenizer: Any) -> tuple[str | None, str | None]:
    """The answer that gets least, and the token that gets most in its place."""
    if not len(batch.answer):
        return None, None
    log_probs, asked = answer_log_probs(backend, batch.to(backend.device))
    right = log_probs.gather(1, asked.answer[:, None])[:, 0]
    least = int(right.argmin())
    given = int(log_probs[least].argmax())
    return token_text(tokenizer, int(asked.answer[least])), token_text(tokenizer, given)
