"""Does a graph predict what interventions really do? Which part of the gap has which cause?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.graphs.changes import CleanRun, Intervention
from circuitkeep.graphs.graph import Graph
from circuitkeep.graphs.interventions import Hold, Writes, effects
from circuitkeep.graphs.response import predicted_effects

DRAWS = 2000
"""Resamples of prompts for an interval."""


@dataclass(frozen=True)
class World:
    """Where an intervention is made.

    Attributes:
        replaced: Whether the transcoder stands in the MLPs' place.
        hold: What stays as in the clean run.
        writes: Which writes of a feature are changed in the true model.
    """

    replaced: bool
    hold: Hold
    writes: Writes = "all"


WORLDS: Mapping[str, World] = {
    "replacement, frozen": World(True, "all"),
    "replacement, last norm free": World(True, "all but the last norm"),
    "replacement, norms free": World(True, "patterns"),
    "replacement, free": World(True, "nothing"),
    "true, frozen": World(False, "all"),
    "true, last norm free": World(False, "all but the last norm"),
    "true, norms free": World(False, "patterns"),
    "true, free": World(False, "nothing"),
    "true, frozen, own layer": World(False, "all", "own layer"),
    "true, free, own layer": World(False, "nothing", "own layer"),
}
"""Frozen: patterns and norms. Own layer: a feature's later writes are left to the true MLPs."""

PREDICTED, ANSWERED = "graph", "graph, last norm free"
"""Names of the graph's prediction beside those of `WORLDS`; see `predicted_effects`."""

GAPS: Mapping[str, tuple[str, str]] = {
    "features that switch": (PREDICTED, "replacement, frozen"),
    "replacement": ("replacement, frozen", "true, frozen"),
    "frozen attention": ("true, frozen", "true, free"),
    "of which the last norm": ("true, frozen", "true, last norm free"),
    "of which norms before attention": ("true, last norm free", "true, norms free"),
    "of which patterns": ("true, norms free", "true, free"),
    "all of it": (PREDICTED, "true, free"),
}
"""What each step from the graph to the true model changes: pairs of `WORLDS`."""

GAPS_ANSWERED: Mapping[str, tuple[str, str]] = {
    "last norm": (PREDICTED, ANSWERED),
    "features that switch": (ANSWERED, "replacement, last norm free"),
    "replacement": ("replacement, last norm free", "true, last norm free"),
    "frozen attention": ("true, last norm free", "true, free"),
    "all but the last norm": (ANSWERED, "true, free"),
}
"""The same, the last norm coming first."""


def measure(
    run: CleanRun,
    graph: Graph,
    interventions: Sequence[Intervention],
    worlds: Mapping[str, World] = WORLDS,
) -> dict[str, Float[Tensor, "intervention logit"]]:
    """Predicted and actual effects on the graph's logits, in logits, by the name of the world.

    Raises:
        ValueError: See `predicted_effects` and `effects`.
    """
    tokens = torch.tensor([node.index for node in graph.nodes if node.kind == "logit"])
    found = {
        PREDICTED: predicted_effects(run, graph, interventions),
        ANSWERED: predicted_effects(run, graph, interventions, last_norm=True),
    }
    for name, world in worlds.items():
        found[name] = effects(
            run,
            interventions,
            tokens,
            replaced=world.replaced,
            hold=world.hold,
            writes=world.writes,
        )
    return found


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap interval over prompts; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    r"""How well one kind of effect, `x`, foretells another, `y`, over all points of all prompts.

    Attributes:
        prompts: How many.
        points: Interventions times logits, of all prompts.
        correlation: Pearson's.
        signs: Share of points with the same sign; points where either is exactly 0 are left out.
        weighted_signs: The same, each point counting by the size of `y`.
        slope: Of the regression of `y` on `x` through the origin, :math:`\sum xy / \sum x^2`; 1 if
            effects are as large as foretold.
        slope_with_intercept: Of the regression with an intercept.
        intercept: Of that regression, in logits.
        difference: :math:`\sqrt{\sum (y - x)^2 / \sum y^2}`: 0 for the same, 1 if foretelling
            nothing would be as good.
    """

    prompts: int
    points: int
    correlation: Estimate
    signs: Estimate
    weighted_signs: Estimate
    slope: Estimate
    slope_with_intercept: Estimate
    intercept: Estimate
    difference: Estimate


FIGURES = (
    "correlation",
    "signs",
    "weighted_signs",
    "slope",
    "slope_with_intercept",
    "intercept",
    "difference",
)


def agreement(x: Sequence[Tensor], y: Sequence[Tensor]) -> Agreement:
    """Compare two kinds of effects; whole prompts are drawn for the intervals.

    Args:
        x: Per prompt, the effects foretold.
        y: Per prompt, in the same shape, those that came.

    Raises:
        ValueError: If there are no prompts, or their shapes differ.
    """
    sums = _sums(x, y)
    value = _figures(sums.sum(0))
    drawn = _figures(_resampled(sums))
    return Agreement(
        len(sums),
        int(sums[:, 0].sum()),
        **{name: _estimate(value[name], drawn[name]) for name in FIGURES},
    )


def lost(
    x: Sequence[Tensor], y: Sequence[Tensor], z: Sequence[Tensor], figure: str = "correlation"
) -> Estimate:
    """By how much a figure is lower between `x` and `z` than between `x` and `y`; prompts paired.

    Raises:
        ValueError: See `agreement`.
    """
    first, second = _sums(x, y), _sums(x, z)
    value = _figures(first.sum(0))[figure] - _figures(second.sum(0))[figure]
    drawn = _figures(_resampled(first))[figure] - _figures(_resampled(second))[figure]
    return _estimate(value, drawn)


def shuffled(predicted: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Each prompt's predictions, given to other interventions of the same prompt at random.

    Args:
        predicted: Per prompt, ``intervention logit``.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    return [one[torch.randperm(len(one), generator=generator)] for one in predicted]


def _sums(x: Sequence[Tensor], y: Sequence[Tensor]) -> Float[Tensor, "prompt sum"]:
    """What all figures are made of."""
    if not x or [one.shape for one in x] != [one.shape for one in y]:
        raise ValueError(
            f"two kinds of effects of the same prompts are compared, got {len(x)} and {len(y)} "
            "prompts, or other shapes in one"
        )
    rows = []
    for first, second in zip(x, y, strict=True):
        a, b = first.double().flatten(), second.double().flatten()
        signed, same = (a != 0) & (b != 0), a.sign() == b.sign()
        rows.append(
            torch.stack(
                [
                    torch.tensor(float(len(a)), dtype=torch.double),
                    a.sum(),
                    b.sum(),
                    a @ a,
                    b @ b,
                    a @ b,
                    signed.double().sum(),
                    (signed & same).double().sum(),
                    (b.abs() * signed).sum(),
                    (b.abs() * (signed & same)).sum(),
                    (b - a).square().sum(),
                ]
            ).cpu()
        )
    return torch.stack(rows)


def _resampled(sums: Float[Tensor, "prompt sum"]) -> Float[Tensor, "draw sum"]:
    """The draws are always the same, so that figures of the same prompts can be compared."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(sums), (DRAWS, len(sums)), generator=generator)
    return sums[drawn].sum(1)


def _figures(sums: Float[Tensor, "*draw sum"]) -> dict[str, Float[Tensor, "*draw"]]:
    n, x, y, xx, yy, xy, signed, same, size, same_size, apart = sums.unbind(-1)
    spread_x, spread_y, together = xx - x * x / n, yy - y * y / n, xy - x * y / n
    slope = together / spread_x
    return {
        "correlation": together / (spread_x * spread_y).sqrt(),
        "signs": same / signed,
        "weighted_signs": same_size / size,
        "slope": xy / xx,
        "slope_with_intercept": slope,
        "intercept": (y - slope * x) / n,
        "difference": (apart / yy).sqrt(),
    }


def _estimate(value: Tensor, drawn: Float[Tensor, " draw"]) -> Estimate:
    bounds = drawn.nanquantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype))
    return Estimate(value.item(), *bounds.tolist())
