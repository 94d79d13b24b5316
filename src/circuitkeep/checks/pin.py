"""Measuring a model for a baseline: reseeded, held against the null, thresholds proposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.checks.baseline import Baseline, Pinned
from circuitkeep.checks.evidence import Evidence, gather, make_rows
from circuitkeep.checks.judge import bounded, judge, part_scores
from circuitkeep.checks.null import TWINS, null_levels
from circuitkeep.checks.plan import RETENTIONS, Check, Plan, read_plan
from circuitkeep.checks.propose import (
    MISSED,
    POWER,
    TOLERATED,
    check_settings,
    propose,
    unseen_spread,
)
from circuitkeep.circuits import Circuit

RESEEDS = 20
FIRST_SEED = 20_000
"""Of the reseeded rows."""

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Pinning:
    """A baseline, and what could not be pinned.

    Attributes:
        baseline: Of what could.
        refused: Name of a check -> why its value is no ground for a threshold.
    """

    baseline: Baseline
    refused: Mapping[str, str]


def pinned_plan(circuit: Circuit, base: bool = False, faithfulness: bool = False) -> Plan:
    """The checks that a baseline is for: all but those that `Plan.by_row` leaves out or `tests` do.

    Args:
        circuit: Whose.
        base: Whether there is a base model to compare with.
        faithfulness: Also that check, which costs two more passes, where `tests` do not name it.

    Raises:
        CircuitError: See `read_plan`.
    """
    roles = [role.name for role in circuit.roles]
    names = [f"score[{role}]" for role in roles] + ["causal", "behaviour"]
    names += ["faithfulness"] * faithfulness
    names += [f"retention[{part}]" for part in RETENTIONS]
    # Any threshold, for these are measured to find one.
    return read_plan(circuit, dict.fromkeys(names, 0.5), base).by_row()


def pin(
    plan: Plan,
    backend: Backend,
    tokenizer: Any,
    base: Backend | None = None,
    *,
    reseeds: int = RESEEDS,
    seed: int = FIRST_SEED,
    missed: float = MISSED,
    tolerated: float = TOLERATED,
    twins: int = TWINS,
    tell: Tell = lambda done, total: None,
) -> Pinning:
    """Measure a circuit's checks on many draws of rows, and propose thresholds.

    Args:
        plan: See `pinned_plan`.
        backend: The model.
        tokenizer: Its tokenizer; None for probes of random tokens.
        base: What it came of, for the checks that compare.
        reseeds: How often the model is measured, each time on as many rows as the plan has.
        seed: First of the rows' seeds.
        missed: Chance that an unchanged model does not pass.
        tolerated: Share of a value that its threshold is below it, at least.
        twins: Random-weight twins, for the null.
        tell: Told how many of the measurements are done.

    Raises:
        CircuitError: If a head is outside the model.
        ValueError: If the prompts do not fit it; for fewer than 2 reseeds or twins.
    """
    check_settings(reseeds, missed, tolerated)
    owner = backend if base is None else base
    total = reseeds + 2

    def measured(number: int, seeds: Sequence[int]) -> tuple[Evidence, Evidence | None]:
        rows = make_rows(plan, owner, tokenizer, seeds)
        found = gather(plan, backend, rows), None if base is None else gather(plan, base, rows)
        tell(number, total)
        return found

    own, own_base = measured(1, plan.seeds)
    first = make_rows(plan, owner, tokenizer, plan.seeds[:1])[0]
    nulls = null_levels(plan, backend, first, own, own_base, twins)
    tell(2, total)
    again = [
        measured(3 + number, seeds)
        for number, seeds in enumerate(reseeded(reseeds, len(plan.seeds), seed))
    ]
    checks, refused = {}, {}
    for check in plan.checks:
        if check.kind == "no_migration":  # counts heads, and none may move
            continue
        _, low, high = ends(plan, check, own, own_base)
        several = torch.tensor([ends(plan, check, *one) for one in again], dtype=torch.double)
        least = 0.0
        if bounded(plan, check) or check.kind == "replicates":
            least = unseen_spread(_rows(plan, check), reseeds)
        one = _pinned(several, (low, high), nulls[check.name], missed, tolerated, least)
        if isinstance(one, str):
            refused[check.name] = one
        else:
            checks[check.name] = one
    baseline = Baseline(
        plan.circuit.name,
        fingerprint_model(backend.model),
        plan.rows,
        len(plan.seeds),
        reseeds,
        missed,
        tolerated,
        checks,
    )
    return Pinning(baseline, refused)


def reseeded(times: int, seeds: int, first: int) -> list[tuple[int, ...]]:
    """So many draws of so many seeds, all different."""
    return [
        tuple(range(first + number * seeds, first + (number + 1) * seeds))
        for number in range(times)
    ]


def ends(
    plan: Plan, check: Check, now: Evidence, base: Evidence | None = None
) -> tuple[float, float, float]:
    """Value of a check, and the ends of its interval, which the threshold is held against.

    ``replicates`` passes if the threshold is certain to be reached in as many parts as it asks
    for: of the parts, taken in order, that is the last one that counts.
    """
    if check.kind != "replicates":
        outcome = judge(plan, check, now, base)
        return outcome.value, outcome.low, outcome.high
    parts = part_scores(plan, check, now)
    wanted = len(parts) if check.at_least is None else min(check.at_least, len(parts))

    def last(values: list[float]) -> float:
        return sorted(values, reverse=True)[wanted - 1]

    means = [mean for mean, _ in parts.values()]
    lows, highs = zip(*(bounds for _, bounds in parts.values()), strict=True)
    return last(means), last(list(lows)), last(list(highs))


def _pinned(
    several: Tensor,
    own: tuple[float, float],
    null: float,
    missed: float,
    tolerated: float,
    least: float,
) -> Pinned | str:
    """What is pinned; or why nothing is."""
    value, low, high = several.unbind(1)
    if several.isnan().any() or math.isnan(own[0]):
        return "in some draws of rows it has no value"
    spread = max(value.std().item(), least)
    if spread == 0:
        return "it is the same on all rows, so there is no spread to place a threshold by"
    found = propose(
        value, low, high, missed=missed, tolerated=tolerated, power=POWER, least_spread=least
    )
    mean = value.mean().item()
    if found.threshold <= null:
        return (
            f"{mean:.3g} is too near {null:.3g}, which is to be had without a circuit: the "
            f"threshold would be {found.threshold:.3g}"
        )
    return Pinned(
        value=mean,
        low=own[0],
        high=own[1],
        seed_spread=spread,
        null=null,
        threshold=found.threshold,
        false_alarm=found.false_alarm,
        detects=found.loss / mean,
    )


def _rows(plan: Plan, check: Check) -> int:
    """Of what the interval is of; for ``replicates`` that is a part."""
    return plan.rows if check.kind == "replicates" else plan.rows * len(plan.seeds)
