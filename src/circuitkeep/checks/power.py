"""What the checks of a circuit detect, and how often they are wrong: by planted damage.

The unchanged model is measured on many draws of rows: whatever fails there is a false alarm. Then
noise on the circuit's heads (`circuitkeep.checks.damage`), in several directions, each as large as
it takes to lower the heads' causal effect by a given share, measured on rows of their own. The
damaged model is held to the checks on further draws of rows, with the unchanged one as its base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from circuitkeep.capture import Backend
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.causal.ablation import ablation_effect
from circuitkeep.checks.damage import KINDS, Kind, damaged, scale_for
from circuitkeep.checks.evidence import Evidence, gather, make_rows
from circuitkeep.checks.judge import judge
from circuitkeep.checks.outcome import Verdict
from circuitkeep.checks.pin import reseeded
from circuitkeep.checks.plan import Plan
from circuitkeep.checks.power_report import Detected, Level, Power, detectable
from circuitkeep.checks.propose import POWER
from circuitkeep.evals.circuit import retention
from circuitkeep.probes import ProbeBatch

RESEEDS = 200
DIRECTIONS = 8
RUNS = 5
LOSSES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
FIRST_SEED = 50_000
CALIBRATION_ROWS = 512

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class _Run:
    """One direction and size of damage, on one draw of rows."""

    verdicts: Mapping[str, Verdict]
    kept: Mapping[str, float]


@dataclass(frozen=True)
class _Damage:
    """One direction and size of damage."""

    scale: float
    lost: float
    runs: Sequence[_Run]

    def share_failed(self, check: str) -> float:
        failed = [run.verdicts[check] == Verdict.FAILED for run in self.runs]
        return sum(failed) / len(failed)


def measure_power(
    plan: Plan,
    backend: Backend,
    tokenizer: Any,
    *,
    reseeds: int = RESEEDS,
    directions: int = DIRECTIONS,
    runs: int = RUNS,
    losses: Sequence[float] = LOSSES,
    calibration_rows: int = CALIBRATION_ROWS,
    seed: int = FIRST_SEED,
    power: float = POWER,
    tell: Tell = lambda done, total: None,
) -> Power:
    """Plant damage, and count which checks see it.

    Args:
        plan: The checks, those that need a base among them: it is the unchanged model. The check
            of graphs is left out.
        backend: The model; its weights are put back bit for bit.
        tokenizer: Its tokenizer; None for probes of random tokens.
        reseeds: Draws of rows for the unchanged model.
        directions: Of noise, for each kind of damage.
        runs: Draws of rows for each direction and size.
        losses: Of the causal effect, shares, growing.
        calibration_rows: On which the size of the noise is found.
        seed: First of the rows' seeds.
        power: Share of the runs that must fail for a damage to count as detected.
        tell: Told how many of the measurements are done.

    Raises:
        CircuitError: If a head is outside the model.
        ValueError: If the circuit's heads have no causal effect, or a number is out of range.
    """
    if directions < 2 or runs < 1 or reseeds < directions * runs:
        raise ValueError(
            f"directions={directions} (at least 2) times runs={runs} (at least 1) must be no more "
            f"than the draws of rows of the unchanged model, reseeds={reseeds}"
        )
    if sorted(set(losses)) != list(losses) or not losses or losses[0] <= 0:
        raise ValueError(f"losses must be shares above 0 that grow, got {list(losses)}")
    plan = plan.by_row()
    total = reseeds + directions * len(KINDS) * len(losses) * runs
    seeds = reseeded(reseeds, len(plan.seeds), seed)
    unchanged, verdicts = [], []
    for number, own in enumerate(seeds):
        evidence = gather(plan, backend, make_rows(plan, backend, tokenizer, own))
        verdicts.append(_verdicts(plan, evidence, evidence))
        if number < directions * runs:
            unchanged.append(evidence)
        tell(number + 1, total)
    many = make_rows(plan, backend, tokenizer, range(seed - _batches(plan, calibration_rows), seed))
    before = _effect(plan, backend, many)
    if before <= 0:
        raise ValueError(
            f"circuit {plan.circuit.name!r}: ablating its heads costs {before:.3g} nats, so there "
            "is no effect that damage could lower"
        )
    found: dict[Kind, list[list[_Damage | None]]] = {kind: [] for kind in KINDS}
    done = reseeds
    for direction in range(directions):
        chosen = range(direction * runs, (direction + 1) * runs)
        draws = [(make_rows(plan, backend, tokenizer, seeds[n]), unchanged[n]) for n in chosen]
        for kind in KINDS:
            known: dict[float, float] = {}
            sizes = []
            for loss in losses:
                planted = _planted(plan, backend, many, before, kind, direction, loss, known)
                sizes.append(planted and _damage(plan, backend, draws, kind, direction, *planted))
                done += runs
                tell(done, total)
            found[kind].append(sizes)
    names = [check.name for check in plan.checks]
    return Power(
        plan.circuit.name,
        fingerprint_model(backend.model),
        plan.rows * len(plan.seeds),
        reseeds,
        {check.name: check.threshold for check in plan.checks},
        {name: _count(verdicts, name, Verdict.FAILED) for name in names},
        {name: _count(verdicts, name, Verdict.INCONCLUSIVE) for name in names},
        {kind: _levels(damages, losses, names) for kind, damages in found.items()},
        {
            kind: {name: _detected(damages, losses, name, verdicts, power) for name in names}
            for kind, damages in found.items()
        },
        power,
    )


def _planted(
    plan: Plan,
    backend: Backend,
    many: Sequence[ProbeBatch],
    before: float,
    kind: Kind,
    direction: int,
    loss: float,
    known: dict[float, float],
) -> tuple[float, float] | None:
    """The scale that takes so much, and what it took."""

    def loss_at(scale: float) -> float:
        with damaged(backend, plan.circuit.heads, kind, scale, direction):
            return 1 - _effect(plan, backend, many) / before

    scale = scale_for(loss_at, loss, known)
    return None if scale is None else (scale, known[scale])


def _damage(
    plan: Plan,
    backend: Backend,
    draws: Sequence[tuple[Sequence[ProbeBatch], Evidence]],
    kind: Kind,
    direction: int,
    scale: float,
    lost: float,
) -> _Damage:
    runs = []
    with damaged(backend, plan.circuit.heads, kind, scale, direction):
        for rows, base in draws:
            now = gather(plan, backend, rows)
            kept = retention(now.measured, base.measured, plan.circuit)
            runs.append(
                _Run(
                    _verdicts(plan, now, base),
                    {name.removesuffix("_retention"): share for name, share in kept.items()},
                )
            )
    return _Damage(scale, lost, runs)


def _levels(
    damages: Sequence[Sequence[_Damage | None]], losses: Sequence[float], names: Sequence[str]
) -> list[Level]:
    levels = []
    for place, loss in enumerate(losses):
        own = [sizes[place] for sizes in damages]
        own = [one for one in own if one is not None]
        runs = [run for one in own for run in one.runs]
        verdicts = [run.verdicts for run in runs]
        if not own:
            continue
        levels.append(
            Level(
                loss,
                _mean([one.lost for one in own]),
                _mean([one.scale for one in own]),
                len(own),
                len(runs),
                {name: _mean([run.kept[name] for run in runs]) for name in runs[0].kept},
                {name: _count(verdicts, name, Verdict.FAILED) for name in names},
                {name: _count(verdicts, name, Verdict.INCONCLUSIVE) for name in names},
            )
        )
    return levels


def _detected(
    damages: Sequence[Sequence[_Damage | None]],
    losses: Sequence[float],
    name: str,
    unchanged: Sequence[Mapping[str, Verdict]],
    power: float,
) -> Detected:
    false_alarms = _count(unchanged, name, Verdict.FAILED) / len(unchanged)
    shares = [
        [false_alarms, *(torch.nan if one is None else one.share_failed(name) for one in sizes)]
        for sizes in damages
    ]
    return detectable([0.0, *losses], torch.tensor(shares, dtype=torch.double), power)


def _verdicts(plan: Plan, now: Evidence, base: Evidence) -> dict[str, Verdict]:
    return {check.name: judge(plan, check, now, base).verdict for check in plan.checks}


def _count(verdicts: Sequence[Mapping[str, Verdict]], name: str, wanted: Verdict) -> int:
    return sum(one[name] == wanted for one in verdicts)


def _effect(plan: Plan, backend: Backend, rows: Sequence[ProbeBatch]) -> float:
    """Nats per answer that ablating the circuit's heads costs."""
    effects = [ablation_effect(backend, plan.circuit.heads, batch) for batch in rows]
    return torch.cat(effects).nanmean().item()


def _batches(plan: Plan, rows: int) -> int:
    return max(1, -(-rows // plan.rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
