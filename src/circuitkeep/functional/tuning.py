"""Place cells: features that stand for one stretch of a variable's values each.

Source:
    Gurnee et al. 2025, "When Models Manipulate Manifolds", arXiv:2601.04480, on features of the
    character count, after O'Keefe & Dostrovsky 1971, "The hippocampus as a spatial map", Brain
    Research 34.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Fields(NamedTuple):
    """Where features are active, in classes of the variable.

    Attributes:
        preferred: The class of the highest mean activation.
        first, last: The classes around it of at least half of that above the lowest.
        single: Whether these are all such classes: one bump.
        clear: Whether neither end of the range cuts the stretch off, so that its width is known.
    """

    preferred: Int[Tensor, " feature"]
    first: Int[Tensor, " feature"]
    last: Int[Tensor, " feature"]
    single: Bool[Tensor, " feature"]
    clear: Bool[Tensor, " feature"]

    @property
    def width(self) -> Int[Tensor, " feature"]:
        """Classes in the stretch."""
        return self.last - self.first + 1


def receptive_fields(curves: Float[Tensor, "feature class"]) -> Fields:
    """Describe mean activations by class.

    A feature that never changes has its whole range for a stretch.
    """
    lowest, highest = curves.amin(1, keepdim=True), curves.amax(1, keepdim=True)
    high = curves >= (lowest + highest) / 2
    preferred = curves.argmax(1)
    places = torch.arange(curves.shape[1], device=curves.device)
    at = preferred[:, None]
    first = torch.where(~high & (places < at), places, -1).amax(1) + 1
    last = torch.where(~high & (places > at), places, curves.shape[1]).amin(1) - 1
    single = high.sum(1) == last - first + 1
    return Fields(preferred, first, last, single, (first > 0) & (last < curves.shape[1] - 1))


def curve_agreement(
    first: Float[Tensor, "feature class"], second: Float[Tensor, "feature class"]
) -> Float[Tensor, " feature"]:
    """Correlation over the classes of mean activations from two halves of the prompts.

    Returns:
        0 where one of them never changes.
    """
    one, other = (
        torch.nn.functional.normalize(c - c.mean(1, keepdim=True), dim=1) for c in (first, second)
    )
    return (one * other).sum(1)


def place_cells(
    first: Float[Tensor, "feature class"],
    second: Float[Tensor, "feature class"],
    agreement: float = 0.8,
    widest: float = 0.5,
) -> tuple[Fields, Bool[Tensor, " feature"]]:
    """Which features are place cells, from mean activations over two halves of the prompts.

    Args:
        first, second: Mean activations by class.
        agreement: `curve_agreement` that a place cell has at least.
        widest: Share of the classes that its stretch has at most.

    Returns:
        The fields of all features, of the halves' mean, and which are place cells: one bump, not
        too wide, the same in both halves.
    """
    fields = receptive_fields((first + second) / 2)
    tuned = curve_agreement(first, second) >= agreement
    narrow = fields.width <= widest * first.shape[1]
    return fields, tuned & narrow & fields.single


def covered(fields: Fields, chosen: Bool[Tensor, " feature"], classes: int) -> float:
    """Share of the classes within the stretch of at least one of the chosen features."""
    places = torch.arange(classes, device=chosen.device)
    within = (fields.first[:, None] <= places) & (places <= fields.last[:, None])
    return within[chosen].any(0).double().mean().item()
