"""Which feature of one transcoder is which of another: one to one, by when they are active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """Features of two transcoders in pairs, layer by layer.

    Attributes:
        partner: The feature of the second for each of the first; -1 where either is never active.
        correlation: Of their activations over tokens; NaN without a partner.
        active: Whether a feature of the first is active on any token.
    """

    partner: Int[Tensor, "layer feature"]
    correlation: Float[Tensor, "layer feature"]
    active: Bool[Tensor, "layer feature"]

    def shares(self, least: float) -> float:
        """Share of the first's active features whose partner correlates with them by `least`.

        Features that are never active on the tokens are left out; an active feature without a
        partner counts as not matched.
        """
        return (self.correlation >= least).sum().item() / max(1, int(self.active.sum()))

    def of_layer(self, layer: int) -> Matching:
        """One layer's alone."""
        one = slice(layer, layer + 1)
        return Matching(self.partner[one], self.correlation[one], self.active[one])

    def labels(self, least: float = 0.0) -> dict[tuple[int, int], int]:
        """Numbers in the first by layer and number in the second, of pairs that correlate so.

        For `circuitkeep.graphs.stability.relabelled` of the second.
        """
        chosen = (self.partner >= 0) & (self.correlation >= least)
        return {
            (layer, int(self.partner[layer, index])): index
            for layer, index in chosen.nonzero().tolist()
        }


def match_features(
    first: Float[Tensor, "layer token feature"], second: Float[Tensor, "layer token other"]
) -> Matching:
    """Pair features so that the sum of their correlations is the highest possible.

    Args:
        first: Activations of one transcoder's features.
        second: Those of another's on the same tokens.

    Source:
        The assignment of Kuhn 1955 ("Hungarian method"), as in Li et al. 2016, "Convergent
        Learning", arXiv:1511.07543.
    """
    partner = torch.full((first.shape[0], first.shape[2]), -1)
    correlation = torch.full(partner.shape, torch.nan, dtype=torch.double)
    for layer, (one, other) in enumerate(zip(first, second, strict=True)):
        mine, theirs = (x.std(0, correction=0) > 0 for x in (one, other))
        table = correlations(one[:, mine], other[:, theirs])
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        at = mine.nonzero()[rows, 0]
        partner[layer, at] = theirs.nonzero()[columns, 0]
        correlation[layer, at] = table[rows, columns]
    return Matching(partner, correlation, (first != 0).any(1).cpu())


def correlations(
    first: Float[Tensor, "token feature"], second: Float[Tensor, "token other"]
) -> Float[Tensor, "feature other"]:
    """Pearson's correlation of every column with every other, in double precision."""
    centred = [x.double().cpu() - x.double().cpu().mean(0) for x in (first, second)]
    units = [x / x.norm(dim=0).clamp(min=1e-12) for x in centred]
    return units[0].T @ units[1]
