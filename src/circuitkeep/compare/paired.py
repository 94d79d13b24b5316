"""What trainings with several seeds kept, and how that differs from others with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Circuit
from circuitkeep.compare.replicates import Estimate, crossed_mean
from circuitkeep.evals import CircuitMeasurement
from circuitkeep.functional.inference import holm

KINDS = ("identity", "causal", "behaviour")
"""The three kinds of retention, in the order in which every renderer shows them."""

NAN = float("nan")
Key = TypeVar("Key", bound=tuple[Any, ...])


@dataclass(frozen=True)
class CircuitRows:
    """What one circuit does in one model, on each held-out row.

    Attributes:
        identity: Role -> mean attention of its heads to its targets; NaN in rows without one.
        causal: Answer loss that ablating the heads jointly costs, in nats.
        behaviour: The circuit's behaviour, in the unit it names.
    """

    identity: Mapping[str, Float[Tensor, " row"]]
    causal: Float[Tensor, " row"]
    behaviour: Float[Tensor, " row"]

    @classmethod
    def of(cls, measured: CircuitMeasurement, circuit: Circuit) -> CircuitRows:
        """The rows of a measurement."""
        return cls(measured.role_scores(circuit), measured.effect_nats, measured.behaviour)


@dataclass(frozen=True)
class Kept:
    """A figure of a group of trainings that differ in nothing but the seed.

    Attributes:
        share: Value now / value in the base model, over seeds and prompts (or a loss, over seeds).
        difference: Of that to another group's, paired by seed and prompt; None where there is
            none.
        effect_size: Mean over seeds of that difference divided by its standard deviation
            (Cohen's d_z); NaN for one seed.
        p_holm: P-value of the difference being 0, Holm-corrected over all groups and circuits of
            the kind; NaN without a difference.
    """

    share: Estimate
    difference: Estimate | None = None
    effect_size: float = NAN
    p_holm: float = NAN


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


def shares(runs: Sequence[CircuitRows], base: CircuitRows, kind: str) -> Float[Tensor, "seed row"]:
    """`linearized` of one kind of retention; identity is the mean over roles."""
    if kind == "identity":
        roles = [
            linearized(torch.stack([run.identity[role] for run in runs]), values)
            for role, values in base.identity.items()
        ]
        return torch.stack(roles).mean(0)
    now = torch.stack([getattr(run, kind) for run in runs])
    return linearized(now, getattr(base, kind))


def estimate(values: Float[Tensor, "seed row"]) -> Estimate:
    """`crossed_mean`, or NaN where no row has a value."""
    if values.isnan().any(0).all():
        return Estimate(NAN, NAN, NAN, NAN, values.shape[0], 0)
    return crossed_mean(values)


def over_seeds(values: Sequence[float]) -> Float[Tensor, "seed one"]:
    """One value per seed, as `estimate` and `kept` take them."""
    return torch.tensor(values, dtype=torch.double)[:, None]


def kept(own: Float[Tensor, "seed row"], sides: Sequence[Float[Tensor, "pair row"]] = ()) -> Kept:
    """The estimate of `own`, and of the first side minus the second, if there are two."""
    if not sides:
        return Kept(estimate(own))
    difference = sides[0] - sides[1]
    by_seed = difference.mean(1)
    spread = by_seed.std().item() if len(by_seed) > 1 else 0.0
    size = by_seed.mean().item() / spread if spread > 0 else NAN
    return Kept(estimate(own), estimate(difference), size)


def corrected(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's correction within each family, which is a key's first part; NaN are left out."""
    found: dict[Key, float] = {}
    for family in {key[0] for key in p}:
        keys = [key for key in p if key[0] == family and isfinite(p[key])]
        if keys:
            values = holm(torch.tensor([p[key] for key in keys], dtype=torch.double))
            found |= dict(zip(keys, values.tolist(), strict=True))
    return found
