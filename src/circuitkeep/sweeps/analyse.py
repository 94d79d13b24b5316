"""From the rows of all runs to a `SweepReport`: shares, prices, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from circuitkeep.circuits import did_you_mean
from circuitkeep.compare.paired import (
    KINDS,
    NAN,
    corrected,
    estimate,
    kept,
    over_seeds,
    shares,
)
from circuitkeep.compare.pareto import front
from circuitkeep.compare.replicates import Estimate
from circuitkeep.sweeps.collect import Group, Run
from circuitkeep.sweeps.report import GroupResult, RunResult
from circuitkeep.sweeps.rows import Measured


def analyse(
    groups: Sequence[Group], base: Measured, measured: Mapping[str, Measured], price: str
) -> tuple[tuple[GroupResult, ...], tuple[RunResult, ...]]:
    """What every group kept and what that cost, and the same run by run.

    Args:
        groups: Runs by everything but the seed.
        base: The base model's rows.
        measured: Run name -> its rows, the same as the base's.
        price: Final metric of every run, lower is better.

    Raises:
        ValueError: If a run does not have the metric `price`.
    """
    by_label = {group.label: group for group in groups}
    results = [_group(g, by_label.get(g.against), base, measured, price) for g in groups]
    results = _corrected(results)
    fronts = {circuit: _front(results, circuit) for circuit in base}
    results = [
        replace(r, front=tuple(c for c, front in fronts.items() if r.label in front))
        for r in results
    ]
    runs = [
        RunResult(run.name, group.label, run.record.seed, run.record.metrics, own)
        for group in groups
        for run in group.runs
        for own in [_shares(measured[run.name], base)]
    ]
    return tuple(results), tuple(runs)


def _shares(rows: Measured, base: Measured) -> dict[str, dict[str, float]]:
    return {
        circuit: {kind: shares([rows[circuit]], of_base, kind).mean().item() for kind in KINDS}
        for circuit, of_base in base.items()
    }


def _group(
    group: Group,
    plain: Group | None,
    base: Measured,
    measured: Mapping[str, Measured],
    price: str,
) -> GroupResult:
    pairs: list[tuple[Run, Run]] = []
    if plain is not None:
        others = plain.by_seed
        pairs = [(run, others[seed]) for seed, run in group.by_seed.items() if seed in others]
    circuits = {
        circuit: {
            kind: kept(
                shares([measured[run.name][circuit] for run in group.runs], of_base, kind),
                [
                    shares([measured[pair[side].name][circuit] for pair in pairs], of_base, kind)
                    for side in (0, 1)
                    if pairs
                ],
            )
            for kind in KINDS
        }
        for circuit, of_base in base.items()
    }
    metrics = [run.record.metrics for run in group.runs]
    shared = set.intersection(*(set(each) for each in metrics))
    return GroupResult(
        label=group.label,
        unregularized=group.unregularized,
        against=group.against if pairs else "",
        seeds=tuple(group.by_seed),
        price=estimate(over_seeds([_price(run, price) for run in group.runs])),
        price_difference=estimate(
            over_seeds([_price(a, price) - _price(b, price) for a, b in pairs])
        )
        if pairs
        else None,
        price_p_holm=NAN,
        capability={
            name: estimate(over_seeds([each[name] for each in metrics]))
            for name in sorted(shared)
            if name.endswith("/loss_nats") and name != price
        },
        circuits=circuits,
    )


def _price(run: Run, name: str) -> float:
    metrics = run.record.metrics
    if name not in metrics:
        raise ValueError(
            f"the run {run.name} has no final metric {name!r}; set price=METRIC"
            + did_you_mean(name, list(metrics))
        )
    return metrics[name]


def _corrected(results: Sequence[GroupResult]) -> list[GroupResult]:
    """Holm's correction: over groups and circuits for each kind, over groups for the price."""
    p: dict[tuple[str, ...], float] = {}
    for result in results:
        if result.price_difference is not None:
            p["price", result.label] = result.price_difference.p
        for circuit, kinds in result.circuits.items():
            for kind, one in kinds.items():
                if one.difference is not None:
                    p[kind, result.label, circuit] = one.difference.p
    found = corrected(p)
    return [
        replace(
            result,
            price_p_holm=found.get(("price", result.label), NAN),
            circuits={
                circuit: {
                    kind: replace(one, p_holm=found.get((kind, result.label, circuit), NAN))
                    for kind, one in kinds.items()
                }
                for circuit, kinds in result.circuits.items()
            },
        )
        for result in results
    ]


def price_of(result: GroupResult, priced: bool) -> Estimate:
    """Where a group lies on the price axis: its difference to the unregularized, or the metric."""
    if not priced:
        return result.price
    return result.price_difference or Estimate(0.0, NAN, NAN, NAN, len(result.seeds), 1)


def _front(results: Sequence[GroupResult], circuit: str) -> set[str]:
    """Labels of the groups that no other beats in price and behaviour at once."""
    priced = all(result.unregularized or result.price_difference for result in results)
    points = [
        (price_of(result, priced).mean, result.circuits[circuit]["behaviour"].share.mean)
        for result in results
    ]
    return {results[at].label for at in front(points)}
