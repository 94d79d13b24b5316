"""Faithfulness, completeness and minimality of a set of heads, and MIB's curve over its size.

Heads are the nodes here: MLPs, embeddings and norms are never ablated, so numbers do not compare
with those that papers report for circuits of edges or with MLPs among the nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.causal.ablation import Ablation, replacements, score_ablated
from circuitkeep.causal.answers import Metric, check_metric
from circuitkeep.causal.one_by_one import Progress, counting, no_progress
from circuitkeep.circuits import Head
from circuitkeep.functional.faithfulness import curve_areas, faithfulness
from circuitkeep.probes import ProbeBatch

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's circuit sizes, as fractions of all heads; the last is the whole model."""


@dataclass(frozen=True)
class Removal:
    """One test of completeness: the same heads taken from the circuit and from the model.

    Attributes:
        removed: Heads of the circuit.
        circuit: Faithfulness of the circuit without them.
        model: Faithfulness of the model without them.
    """

    removed: tuple[Head, ...]
    circuit: float
    model: float

    @property
    def incompleteness(self) -> float:
        """How far apart the two are; 0 if the circuit holds all that matters."""
        return abs(self.circuit - self.model)


@dataclass(frozen=True)
class SizeCurve:
    """Faithfulness of the first heads of a ranking.

    Attributes:
        sizes: Fractions of all heads of the model.
        heads: How many heads that is, rounded down.
        faithfulness: Of each size.
        cpr: Circuit performance ratio, the area under the curve; higher is better.
        cmd: Circuit-model distance, the area between the curve and 1; lower is better.
    """

    sizes: tuple[float, ...]
    heads: tuple[int, ...]
    faithfulness: tuple[float, ...]
    cpr: float
    cmd: float


class Knockouts:
    """The metric with all but some heads ablated; what takes their place is computed once.

    Args:
        backend: The model.
        batch: Probe rows; should be others than those that the heads were chosen on.
        ablation: What is put in the place of heads outside.
        metric: See `Metric`; the logit difference in the IOI literature.

    Raises:
        ValueError: If the batch cannot give the metric, rows cannot be resampled, or the metric
            is the same with all heads ablated as with none.
    """

    def __init__(
        self,
        backend: Backend,
        batch: ProbeBatch,
        ablation: Ablation,
        metric: Metric = "logit_difference",
    ) -> None:
        check_metric(metric, batch)
        self.backend, self.batch, self.ablation = backend, batch, ablation
        self.metric: Metric = metric
        self.heads = tuple(
            Head(layer, index)
            for layer in range(backend.n_layers)
            for index in range(backend.n_heads)
        )
        self._values = replacements(backend, self.heads, batch, ablation)
        self.model = self.scores(self.heads).nanmean()
        self.empty = self.scores(()).nanmean()
        faithfulness(self.model, self.empty, self.model)

    def scores(self, kept: Collection[Head]) -> Float[Tensor, " batch"]:
        """The metric per row with every head but `kept` ablated.

        Raises:
            ValueError: If a head is outside the model.
        """
        outside = set(kept) - set(self.heads)
        if outside:
            raise ValueError(
                f"head {min(outside)} is outside the model, whose heads run from {self.heads[0]} "
                f"to {self.heads[-1]}"
            )
        rest = [head for head in self.heads if head not in kept]
        return score_ablated(
            self.backend, rest, self.batch, self.ablation, self.metric, self._values
        )

    def faithfulness(self, kept: Collection[Head]) -> float:
        """See `circuitkeep.functional.faithfulness.faithfulness`; of means over the rows."""
        return faithfulness(self.scores(kept).nanmean(), self.empty, self.model).item()

    def completeness(
        self,
        circuit: Collection[Head],
        draws: int = 10,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> list[Removal]:
        """Take random parts of the circuit from it and from the model: do both lose the same?

        A head of the circuit is taken with probability 1/2, as in the paper; in units of
        faithfulness rather than of logits.

        Source:
            Wang et al. 2022, arXiv:2211.00593, section 4.
        """
        ordered = sorted(circuit)
        generator = torch.Generator().manual_seed(seed)
        tell = counting(progress, draws)
        found = []
        for _ in range(draws):
            chosen = torch.rand(len(ordered), generator=generator) < 0.5
            removed = tuple(h for h, out in zip(ordered, chosen.tolist(), strict=True) if out)
            found.append(
                Removal(
                    removed,
                    self.faithfulness([h for h in ordered if h not in removed]),
                    self.faithfulness([h for h in self.heads if h not in removed]),
                )
            )
            tell(1)
        return found

    def minimality(
        self,
        circuit: Collection[Head],
        without: Mapping[Head, Collection[Head]] | None = None,
        progress: Progress = no_progress,
    ) -> dict[Head, float]:
        """How much faithfulness each head adds to the circuit without `without[head]`.

        Args:
            circuit: The heads to try.
            without: Per head, others that are taken out first, so that heads doing the same job
                do not hide one another (such as the rest of the head's role); none by default.
            progress: Told of heads.

        Source:
            Wang et al. 2022, arXiv:2211.00593, section 4; there the value is in logits and its
            absolute value is reported.
        """
        found = {}
        tell = counting(progress, len(circuit))
        for head in sorted(circuit):
            removed = set((without or {}).get(head, ())) - {head}
            rest = [other for other in circuit if other not in removed]
            less = [other for other in rest if other != head]
            found[head] = self.faithfulness(rest) - self.faithfulness(less)
            tell(1)
        return found

    def curve(
        self,
        ranking: Sequence[Head],
        sizes: Sequence[float] = SIZES,
        progress: Progress = no_progress,
    ) -> SizeCurve:
        """Faithfulness of ever longer beginnings of a ranking of all heads.

        In a small model the smallest sizes hold no head at all, and their faithfulness is 0.

        Args:
            ranking: All heads of the model, the most important first.
            sizes: Ascending fractions of all heads.
            progress: Told of sizes.

        Raises:
            ValueError: If the ranking does not name every head once.

        Source:
            Mueller et al. 2025, arXiv:2504.13151; there over edges, or nodes with MLPs.
        """
        if sorted(ranking) != list(self.heads):
            raise ValueError(
                f"the ranking must name each of the model's {len(self.heads)} heads once, it "
                f"names {len(set(ranking))} in {len(ranking)} places"
            )
        # Not int(size * n) alone: 0.3 * 10 is a little below 3.
        counts = [int(size * len(self.heads) + 1e-9) for size in sizes]
        known: dict[int, float] = {}
        tell = counting(progress, len(sizes))
        for count in counts:
            if count not in known:
                known[count] = self.faithfulness(ranking[:count])
            tell(1)
        values = [known[count] for count in counts]
        cpr, cmd = curve_areas(sizes, torch.tensor(values, dtype=torch.float64))
        return SizeCurve(tuple(sizes), tuple(counts), tuple(values), cpr, cmd)
