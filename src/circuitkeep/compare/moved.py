"""What a report holds of the geometry of circuits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from circuitkeep.manifolds.drift import Estimate
from circuitkeep.manifolds.head_drift import HeadDrift


@dataclass(frozen=True)
class ManifoldDescription:
    """A manifold in the base.

    Attributes:
        variable: Whose.
        layer: After which the residual stream is read.
        values: Of each class, its middle.
        dimensions: Of the subspace that rotation and tilt are of.
        seen: Share of its variance in the three principal components that pictures show.
        null: Figure -> what there is of it between random halves of the prompts, in all but one of
            twenty draws: at most, or for shape and place at least.
    """

    variable: str
    layer: int
    values: tuple[float, ...]
    dimensions: int
    seen: float
    null: Mapping[str, float]


@dataclass(frozen=True)
class ManifoldResult:
    """A manifold in one model, against the base's.

    Attributes:
        drift: Figure -> its value and 95% interval over prompts; see
            `circuitkeep.functional.manifolds.TransformDrift`.
        points: Of each class, in the base's first three principal components, from the base's
            centre, in units of the base's radius.
        explained: Share of the stream's variance over all samples that is between the classes.
    """

    drift: Mapping[str, Estimate]
    points: tuple[tuple[float, ...], ...]
    explained: float


@dataclass(frozen=True)
class GeometryResult:
    """The geometry of one circuit in one model.

    Attributes:
        manifolds: By name.
        heads: How the maps of each named head have moved; empty where the layout of the weights is
            not known.
    """

    manifolds: Mapping[str, ManifoldResult] = field(default_factory=dict)
    heads: Mapping[str, HeadDrift] = field(default_factory=dict)
