r"""Which heads have a role beyond chance: intervals, two nulls, and a correction for all tests.

A head's score on a role is the mean attention it pays to the role's targets. It is *reported* if it
beats both nulls on the rows of every probe seed, after Holm's correction over heads x roles:

- **Random weights**, heads as the sample: an untrained head would score less. The null sample are
  the heads of the same layer in twins of the model, each of whose weight tensors is shuffled entry
  by entry. A twin keeps the scale of every tensor, and so how sharply heads attend; beside a fresh
  initialisation, whose heads attend almost evenly, any trained head would stand out.
- **Matched heads**, prompts as the sample: over all prompts like these the head's mean lies above
  what 95% of the matched heads stay below. Those are the other heads of its layer and of the
  nearest layers, at least 16 if there are as many. The bound is taken from their median and median
  absolute deviation, so fewer than half of them may have the role as well.

See `circuitkeep.functional.inference` for the tests and what they assume. A head's p-value is the
largest over seeds and nulls: as all of them must be rejected, that needs no correction of its own
(an intersection-union test). In a model without structure the first null alone keeps the chance of
any report at the level.

Significant is not the same as having a role: on enough prompts a tenth of a head's attention is
significant. So the lower end of the score's interval must reach a least score as well, and so must
the mean score in every family of prompts (template) that the probe has.

Attention alone is tested here. Whether a head matters is for `circuitkeep.causal` to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.shuffled import shuffled_weights
from circuitkeep.circuits import Head
from circuitkeep.evals.circuit import score_heads
from circuitkeep.functional import (
    holm,
    matched_heads,
    matched_null_p,
    mean_interval,
    random_null_p,
)
from circuitkeep.probes import Probe, ProbeBatch
from circuitkeep.probes.targets import shifted_target
from circuitkeep.probing import probe_context, roles_of

OFFSETS: Mapping[str, Sequence[int]] = {"induction": range(1, 9)}
"""Roles whose targets are tried at several offsets, and which; the first is the probe's own."""


@dataclass(frozen=True)
class Finding:
    """One head in one role.

    Attributes:
        head: Which.
        role: Which.
        score: Mean attention to the role's targets, over the rows of all seeds.
        interval: Bootstrap interval of the score over rows, drawn within each seed.
        offset: How far behind the earlier occurrence the head looks, for roles of `OFFSETS`.
        random_score: Highest score of the same layer's heads in the random-weight twins.
        matched_score: Median score of the matched heads.
        p: Of both nulls, Holm-corrected over all heads and roles.
        family_score: The lowest mean score in any family of the probe's prompts, over all seeds;
            that of all rows where there is one family.
        reported: Whether `p` is at most the level, and the interval and `family_score` above the
            least score.
    """

    head: Head
    role: str
    score: float
    interval: tuple[float, float]
    offset: int | None
    random_score: float
    matched_score: float
    p: float
    family_score: float
    reported: bool


def certify(
    backend: Backend,
    tokenizer: Any,
    probe: Probe,
    roles: Sequence[str] | None = None,
    rows: int = 64,
    seeds: Sequence[int] = (10_000, 10_001, 10_002),
    twins: int = 16,
    level: float = 0.05,
    least: float = 0.25,
    offsets: Mapping[str, Sequence[int]] = OFFSETS,
) -> tuple[Finding, ...]:
    """Test every head of a model in every role, on held-out rows.

    The model's weights are shuffled in place for the twins and put back, bit for bit.

    Args:
        backend: The model.
        tokenizer: Its tokenizer; None for probes of random tokens.
        probe: Labels the roles.
        roles: Roles to test (all that the probe labels, if None). Every one costs power.
        rows: Held-out rows per seed.
        seeds: Of the rows; a head must be found on each.
        twins: Random-weight twins. Each costs as much as scoring the model itself; with fewer than
            10 little can be significant.
        level: Chance of reporting anything in a model in which no head has a role.
        least: What the interval of a reported score must reach.
        offsets: Per role, the offsets at which its target is tried; see `OFFSETS`. The twins and
            the matched heads take their own best as well.

    Returns:
        A finding per role and head, in the order of roles, layers and indices.

    Raises:
        ValueError: For fewer than 3 seeds or 2 twins, a level outside (0, 1), a role that the
            probe does not label or that has no target in the rows of a seed.
    """
    wanted = roles_of(probe, roles)
    if len(set(seeds)) < 3:
        raise ValueError(f"a finding is replicated over at least 3 seeds, got {list(seeds)}")
    if twins < 2:
        raise ValueError(f"a null needs at least 2 random-weight twins, got {twins}")
    if not 0 < level < 1:
        raise ValueError(f"the level must be in (0, 1), got {level}")
    context = probe_context(backend, tokenizer)
    batches = [probe.batch(context, "held_out", rows, seed) for seed in seeds]
    tried = {role: _offsets(batches, role, offsets.get(role)) for role in wanted}
    batches = [_labelled(batch, tried) for batch in batches]
    own = _role_scores(backend, batches)
    null: dict[str, list[Tensor]] = {role: [] for role in wanted}
    for twin in range(twins):
        with shuffled_weights(backend.model, twin):
            for role, scores in _role_scores(backend, batches).items():
                null[role].append(_at_best_offset(scores)[0].nanmean(1))
    families = torch.stack([_families(batch) for batch in batches])
    found = {
        role: _tested(*_at_best_offset(scores), torch.stack(null[role]), families)
        for role, scores in own.items()
    }
    p = holm(torch.cat([result.p.flatten() for result in found.values()]))
    parts = p.unflatten(0, (len(wanted), backend.n_layers, backend.n_heads))
    return tuple(
        finding
        for part, (role, result) in zip(parts, found.items(), strict=True)
        for finding in _findings(
            role, replace(result, p=part), tried[role] if role in offsets else None, level, least
        )
    )


def best_offset(
    scores: Float[Tensor, "offset seed row layer head"],
) -> Int[Tensor, "layer head"]:
    """For each head, the index of the offset at which its mean score is highest."""
    return scores.nanmean((1, 2)).nan_to_num(-1).argmax(0)


@dataclass(frozen=True)
class _Tested:
    """Every head in one role."""

    score: Float[Tensor, "layer head"]
    bounds: Float[Tensor, "bound layer head"]
    best: Int[Tensor, "layer head"]
    family_score: Float[Tensor, "layer head"]
    random_score: Float[Tensor, " layer"]
    matched_score: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]


def _offsets(
    batches: Sequence[ProbeBatch], role: str, asked: Sequence[int] | None
) -> tuple[int, ...]:
    """The asked offsets at which most rows that have a target at all still have one."""

    def rows(offset: int, first: int) -> list[int]:
        shifted = (shifted_target(b.targets[role], b.mask, offset - first) for b in batches)
        return [int(target.any(-1).any(-1).sum()) for target in shifted]

    first, *others = asked or (0,)
    own = rows(first, first)
    if min(own) < 2:
        raise ValueError(
            f"fewer than 2 prompts of a seed have a target for the role {role!r}, so it cannot be "
            "tested; ask for more rows, or give the probe prompts in which it occurs"
        )
    enough = [
        offset
        for offset in others
        if all(2 * count > most for count, most in zip(rows(offset, first), own, strict=True))
    ]
    return (first, *enough)


def _labelled(batch: ProbeBatch, offsets: Mapping[str, Sequence[int]]) -> ProbeBatch:
    """The batch with one target per role and offset, named by both."""
    targets = {
        f"{role} {offset}": shifted_target(batch.targets[role], batch.mask, offset - tried[0])
        for role, tried in offsets.items()
        for offset in tried
    }
    return replace(batch, targets=targets)


def _role_scores(
    backend: Backend, batches: Sequence[ProbeBatch]
) -> dict[str, Float[Tensor, "offset seed row layer head"]]:
    names = list(batches[0].targets)
    scores = [score_heads(backend, batch, names) for batch in batches]
    found: dict[str, list[Tensor]] = {}
    for name in names:
        role = name.rsplit(" ", 1)[0]
        found.setdefault(role, []).append(torch.stack([part[name] for part in scores]))
    return {role: torch.stack(parts).double() for role, parts in found.items()}


def _at_best_offset(
    scores: Float[Tensor, "offset seed row layer head"],
) -> tuple[Float[Tensor, "seed row layer head"], Int[Tensor, "layer head"]]:
    best = best_offset(scores)
    return scores.gather(0, best.expand_as(scores[:1]))[0], best


def _tested(
    scores: Float[Tensor, "seed row layer head"],
    best: Int[Tensor, "layer head"],
    null: Float[Tensor, "twin seed layer head"],
    families: Int[Tensor, "seed row"],
) -> _Tested:
    """Test the heads in one role against both nulls."""
    against_random = random_null_p(scores.nanmean(1), null)
    against_matched = matched_null_p(scores, null)
    score = scores.nanmean((0, 1))
    return _Tested(
        score,
        mean_interval(scores),
        best,
        _lowest(scores, families),
        null.mean(1).amax((0, 2)),
        matched_heads(score).nanmedian(-1).values,
        torch.maximum(against_random, against_matched).amax(0),
    )


def _families(batch: ProbeBatch) -> Int[Tensor, " batch"]:
    one = torch.zeros(len(batch), dtype=torch.long)
    return one if batch.family is None else batch.family.cpu()


def _lowest(
    scores: Float[Tensor, "seed row layer head"], families: Int[Tensor, "seed row"]
) -> Float[Tensor, "layer head"]:
    """The lowest of the families' mean scores; families without a target say nothing."""
    means = [scores[families == family].nanmean(0) for family in families.unique()]
    return torch.stack(means).nan_to_num(torch.inf).amin(0)


def _findings(
    role: str, result: _Tested, offsets: Sequence[int] | None, level: float, least: float
) -> Iterator[Finding]:
    layers, heads = result.score.shape
    for layer in range(layers):
        for index in range(heads):
            place = (layer, index)
            low, high = result.bounds[:, layer, index].tolist()
            p, lowest = result.p[place].item(), result.family_score[place].item()
            yield Finding(
                Head(layer, index),
                role,
                result.score[place].item(),
                (low, high),
                offsets[int(result.best[place])] if offsets else None,
                result.random_score[layer].item(),
                result.matched_score[place].item(),
                p,
                lowest,
                p <= level and min(low, lowest) >= least,
            )
