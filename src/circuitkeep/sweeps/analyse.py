"""From the rows of all runs to a `SweepReport`: shares, prices, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import did_you_mean
from circuitkeep.compare.pareto import front
from circuitkeep.compare.replicates import Estimate, crossed_mean
from circuitkeep.compare.wording import KINDS
from circuitkeep.functional.inference import holm
from circuitkeep.sweeps.collect import Group, Run
from circuitkeep.sweeps.report import GroupResult, Kept, RunResult
from circuitkeep.sweeps.rows import CircuitRows, Measured

NAN = float("nan")


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
        RunResult(run.name, group.label, run.record.seed, run.record.metrics, kept)
        for group in groups
        for run in group.runs
        for kept in [_shares(measured[run.name], base)]
    ]
    return tuple(results), tuple(runs)


def linearized(
    now: Float[Tensor, "seed row"], base: Float[Tensor, " row"]
) -> Float[Tensor, "seed row"]:
    r"""Values whose mean over rows is each seed's ratio of means, and whose spread is its error.

    For a seed and a row :math:`R + (y_{sr} - R\,b_r) / \bar b`, :math:`R` being the ratio over
    all seeds: see `circuitkeep.compare.replicates.crossed_ratio`. Differences of such values are
    differences of ratios, so that groups can be compared row by row. Rows with a NaN count as R,
    the deviations of the others in proportion more.

    Returns:
        NaN everywhere if the base's mean is not positive.
    """
    now, base = now.double(), base.double()
    known = ~(now.isnan().any(0) | base.isnan())
    below = base[known].mean()
    if not below > 0:
        return torch.full_like(now, NAN)
    share = now[:, known].mean() / below
    deviation = (now - share * base) / below * (len(base) / known.sum())
    return share + deviation.where(known, 0.0)


def _cells(runs: Sequence[CircuitRows], base: CircuitRows, kind: str) -> Float[Tensor, "seed row"]:
    """`linearized` of one kind; identity is the mean over roles."""
    if kind == "identity":
        roles = [
            linearized(torch.stack([run.identity[role] for run in runs]), values)
            for role, values in base.identity.items()
        ]
        return torch.stack(roles).mean(0)
    now = torch.stack([getattr(run, kind) for run in runs])
    return linearized(now, getattr(base, kind))


def _estimate(values: Float[Tensor, "seed row"]) -> Estimate:
    if values.isnan().any(0).all():
        return Estimate(NAN, NAN, NAN, NAN, values.shape[0], 0)
    return crossed_mean(values)


def _shares(rows: Measured, base: Measured) -> dict[str, dict[str, float]]:
    return {
        circuit: {kind: _cells([rows[circuit]], of_base, kind).mean().item() for kind in KINDS}
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
            kind: _kept(
                _cells([measured[run.name][circuit] for run in group.runs], of_base, kind),
                [
                    _cells([measured[pair[side].name][circuit] for pair in pairs], of_base, kind)
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
        price=_over_seeds([_price(run, price) for run in group.runs]),
        price_difference=_over_seeds([_price(a, price) - _price(b, price) for a, b in pairs])
        if pairs
        else None,
        price_p_holm=NAN,
        capability={
            name: _over_seeds([each[name] for each in metrics])
            for name in sorted(shared)
            if name.endswith("/loss_nats") and name != price
        },
        circuits=circuits,
    )


def _kept(own: Float[Tensor, "seed row"], sides: Sequence[Float[Tensor, "pair row"]]) -> Kept:
    if not sides:
        return Kept(_estimate(own))
    difference = sides[0] - sides[1]
    by_seed = difference.mean(1)
    spread = by_seed.std().item() if len(by_seed) > 1 else 0.0
    size = by_seed.mean().item() / spread if spread > 0 else NAN
    return Kept(_estimate(own), _estimate(difference), size)


def _price(run: Run, name: str) -> float:
    metrics = run.record.metrics
    if name not in metrics:
        raise ValueError(
            f"the run {run.name} has no final metric {name!r}; set price=METRIC"
            + did_you_mean(name, list(metrics))
        )
    return metrics[name]


def _over_seeds(values: Sequence[float]) -> Estimate:
    return _estimate(torch.tensor(values, dtype=torch.double)[:, None])


def _corrected(results: Sequence[GroupResult]) -> list[GroupResult]:
    """Holm's correction: over groups and circuits for each kind, over groups for the price."""
    p: dict[Any, float] = {}
    for result in results:
        if result.price_difference is not None:
            p["price", result.label] = result.price_difference.p
        for circuit, kinds in result.circuits.items():
            for kind, kept in kinds.items():
                if kept.difference is not None:
                    p[kind, result.label, circuit] = kept.difference.p
    found: dict[Any, float] = {}
    for family in ("price", *KINDS):
        keys = [key for key in p if key[0] == family and isfinite(p[key])]
        if keys:
            values = holm(torch.tensor([p[key] for key in keys], dtype=torch.double))
            found |= dict(zip(keys, values.tolist(), strict=True))
    return [
        replace(
            result,
            price_p_holm=found.get(("price", result.label), NAN),
            circuits={
                circuit: {
                    kind: replace(kept, p_holm=found.get((kind, result.label, circuit), NAN))
                    for kind, kept in kinds.items()
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
