"""Several penalties as one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitkeep.penalties.base import Activations, Labels, Need, Penalty


class Sum(Penalty):
    r"""Weighted sum of named penalties.

    .. math:: \sum_t w_t P_t

    Its unit mixes those of its terms; log the terms of `terms_of` rather than the sum. Invariant
    where all its terms are, blind where all its terms are. A term of weight 0 is not computed.

    Args:
        terms: The penalties by the names they are logged under.
        weights: By the same names; terms not named here weigh 1.

    Raises:
        ValueError: If there is no term or none has a weight, a name cannot be used, a weight names
            no term, is negative or not finite, or two terms want the outputs at different sites.
    """

    def __init__(
        self, terms: Mapping[str, Penalty], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a Sum needs at least one term, e.g. {'pattern': PatternDivergence()}")
        weights = weights or {}
        for name, weight in weights.items():
            if name not in terms:
                raise ValueError(f"a weight for {name!r}; the terms are {', '.join(terms)}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of {name!r} is {weight}; it must be 0 or more")
        self.terms = nn.ModuleDict()
        for name, term in terms.items():
            try:
                self.terms[name] = term
            except KeyError as error:
                raise ValueError(
                    f"a term cannot be named {name!r} ({error.args[0]}); choose another name"
                ) from error
        self.weights = {name: float(weights.get(name, 1.0)) for name in terms}
        if not any(self.weights.values()):
            raise ValueError("every term of the Sum has weight 0, so it would hold nothing")
        if {"z", "result"} <= self.needs:
            raise ValueError(
                "one term wants head outputs at 'z' and another at 'result'; give all the same site"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """All that any term reads."""
        return frozenset().union(*(term.needs for term in self._penalties().values()))

    @property
    def all_queries(self) -> bool:
        """Whether any term reads every real query."""
        return any(term.all_queries for term in self._penalties().values())

    def check_pool(self, labels: Labels) -> None:
        """Refuse a pool of rows on which some term would hold nothing."""
        for term in self._penalties().values():
            term.check_pool(labels)

    def terms_of(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> dict[str, Float[Tensor, ""]]:
        """Each term by name, without its weight and in its own unit."""
        return {name: term(now, reference, labels) for name, term in self._penalties().items()}

    def weigh(self, terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The weighted sum of what `terms_of` gave."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The weighted sum."""
        return self.weigh(self.terms_of(now, reference, labels))

    def _penalties(self) -> Mapping[str, Penalty]:
        weighted = {name: term for name, term in self.terms.items() if self.weights[name]}
        return weighted  # pyright: ignore[reportReturnType]
