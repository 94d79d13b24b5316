"""How sure a circuit's checks are: the figures, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Level:
    """Damage of one size.

    Attributes:
        loss: Of the causal effect that was aimed at, a share.
        lost: That came of it, on the rows it was measured on; mean over directions.
        scale: Size of the noise relative to the heads' products; mean over directions.
        directions: In which it could be reached at all.
        runs: Draws of rows on which the damaged models were held to the checks, in all.
        kept: What is left of attention to the targets (``identity``), ``causal`` effect and
            ``behaviour`` on those; means.
        failed: Name of a check -> runs that failed it.
        inconclusive: Name of a check -> runs in which it could not tell.
    """

    loss: float
    lost: float
    scale: float
    directions: int
    runs: int
    kept: Mapping[str, float]
    failed: Mapping[str, int]
    inconclusive: Mapping[str, int]


@dataclass(frozen=True)
class Detected:
    """The damage that a check detects with the power asked for.

    Attributes:
        loss: Of the causal effect, a share; None if the largest planted damage is not enough.
        low, high: 95% interval over directions; None where a bound lies beyond that damage.
    """

    loss: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Power:
    """How sure a circuit's checks are.

    Attributes:
        circuit: Its name.
        model: Fingerprint of the weights.
        rows: In a measurement, those of all seeds together.
        reseeds: Draws of rows on which the unchanged model was measured.
        thresholds: Name of a check -> its threshold.
        false_alarms: Name of a check -> draws on which the unchanged model failed it.
        inconclusive: Name of a check -> draws on which it did not pass either.
        levels: Kind of damage -> its sizes.
        detected: Kind of damage -> name of a check -> what it detects.
        power: With which.
    """

    circuit: str
    model: str
    rows: int
    reseeds: int
    thresholds: Mapping[str, float]
    false_alarms: Mapping[str, int]
    inconclusive: Mapping[str, int]
    levels: Mapping[str, Sequence[Level]]
    detected: Mapping[str, Mapping[str, Detected]]
    power: float


def detectable(
    losses: Sequence[float], failed: Float[Tensor, "direction loss"], power: float
) -> Detected:
    """The loss from which on a share `power` of the runs fail, with its interval over directions.

    Between losses the share is interpolated, after it is made to grow with them.

    Args:
        losses: Growing, from 0 on.
        failed: Share of runs that fail; NaN where a loss could not be planted.
        power: The share that counts.

    Source:
        Isotonic regression: Barlow et al. 1972; percentile bootstrap over directions: Efron &
        Tibshirani 1993, chapter 13.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(failed), (DRAWS, len(failed)), generator=generator)
    crossings = torch.tensor(
        [_crossing(losses, failed[rows].nanmean(0), power) for rows in drawn], dtype=torch.double
    )
    low, high = crossings.quantile(
        crossings.new_tensor([0.025, 0.975]), interpolation="nearest"
    ).tolist()
    own = _crossing(losses, failed.nanmean(0), power)
    loss, low, high = (None if value == torch.inf else value for value in (own, low, high))
    return Detected(loss, low, high)


def _crossing(losses: Sequence[float], failed: Float[Tensor, " loss"], power: float) -> float:
    there = [(x, y) for x, y in zip(losses, failed.tolist(), strict=True) if y == y]
    shares = isotonic_regression([y for _, y in there]).x.tolist()
    before = None
    for (loss, _), share in zip(there, shares, strict=True):
        if share >= power - 1e-9:
            if before is None:
                return loss
            x, y = before
            return x + (loss - x) * (power - y) / (share - y)
        before = loss, share
    return float("inf")


DAMAGED = {"qk": "queries and keys", "ov": "values and outputs"}
AT = 0.2
"""The loss of causal effect that the table tells the power for."""


def check_rows(found: Power) -> tuple[list[str], list[list[str]]]:
    """Titles and lines, one per check: how often it is wrong, and what it detects."""
    titles = ["check", "threshold", f"false alarms of {found.reseeds}", "inconclusive"]
    for kind in found.levels:
        titles += [f"fails at -{AT:.0%}, {kind.upper()}", f"detects, {kind.upper()}"]
    lines = []
    for name, threshold in found.thresholds.items():
        line = [name, f"{threshold:.4g}"]
        line += [str(found.false_alarms[name]), str(found.inconclusive[name])]
        for kind, levels in found.levels.items():
            at = next((level for level in levels if abs(level.loss - AT) < 1e-9), None)
            line.append("" if at is None else f"{at.failed[name]} of {at.runs}")
            line.append(_detected(found.detected[kind][name], levels))
        lines.append(line)
    return titles, lines


def damage_rows(found: Power) -> tuple[list[str], list[list[str]]]:
    """Titles and lines, one per kind and size of damage: what it took, and what it left."""
    titles = ["damage to", "noise", "causal effect", "attention", "behaviour", "directions"]
    lines = [
        [
            DAMAGED[kind],
            f"{level.scale:.2f}",
            *(f"{level.kept[name] - 1:+.0%}" for name in ("causal", "identity", "behaviour")),
            str(level.directions),
        ]
        for kind, levels in found.levels.items()
        for level in levels
    ]
    return titles, lines


def to_markdown(found: Power) -> str:
    """Both tables, with what they say."""
    return "\n".join(
        [
            f"### {found.circuit}",
            "",
            *_table(*check_rows(found)),
            "",
            explained(found),
            "",
            *_table(*damage_rows(found)),
            "",
        ]
    )


def explained(found: Power) -> str:
    """What the figures of the tables are."""
    losses = sorted({level.loss for levels in found.levels.values() for level in levels})
    planted = ", ".join(f"{loss:.0%}" for loss in losses)
    return (
        f"{found.rows} rows in a measurement. 'detects' is the loss of causal effect from which on "
        f"{found.power:.0%} of the runs fail, with its 95% interval over directions of the noise; "
        f"interpolated between the losses that were planted, {planted}. "
        "'noise' is its size relative to the heads' own product. The base of retention and "
        "migration is the unchanged model on the same rows, so that false alarms cannot be."
    )


def _detected(one: Detected, levels: Sequence[Level]) -> str:
    most = f"{max((level.loss for level in levels), default=0):.0%}"
    if one.loss is None:
        return f"beyond -{most}"
    low, high = (f"beyond {most}" if end is None else f"{end:.0%}" for end in (one.low, one.high))
    return f"-{one.loss:.0%} [{low}, {high}]"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *lines)]
