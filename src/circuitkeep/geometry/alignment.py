"""Heads that match one variable with another: boundary heads, and how far from chance they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.inputs import position_turns
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.functional.alignment import (
    HeadSide,
    TurnedSums,
    best_diagonal,
    cosine_matrix,
    double_centred,
    inner_factor,
    random_scores,
    shuffled_diagonals,
    turned_sums,
)
from circuitkeep.geometry.class_means import ClassMeans

_BEYOND = 0.99
"""Quantile of its random heads that a boundary head must exceed."""


@dataclass(frozen=True)
class Alignment:
    """How a head matches the values of a variable at the query with those of one at the key.

    Scores are inner products of the mean query and the mean key of each class, as the model
    computes them (rotation and norms included), without what all keys or all queries share. They do
    not depend on the gauge inside the head. For rotary models they are averages over all distances
    at which the classes stand.

    Attributes:
        head: Which.
        query, key: Names of the manifolds.
        correlation: Of the scores with the nearest shifted diagonal, from -1 to 1.
        offset: By how much the key's value lies above the query's there.
        held_out: Correlation with that same diagonal on other prompts.
        random_mean, random_limit: Mean and 99% quantile of `correlation` over random heads, which
            are the same but for the directions that they read.
        monotone: Correlation of the scores with the product of the values, whatever its sign: of a
            head that only finds more of the one where there is more of the other.
        shuffled_limit: 99% quantile with the keys' classes shuffled, an easier null.
        stream: Correlation of the cosines in the residual stream with their nearest shifted
            diagonal: what there is before the head turns it.
        stream_offset: Its offset.
        strength: Root mean square of the scores in nats, with the usual scale 1 / sqrt(d_head).
        scores: In nats; a row per class of the query, a column per class of the key.
    """

    head: Head
    query: str
    key: str
    correlation: float
    offset: float
    held_out: float
    random_mean: float
    random_limit: float
    monotone: float
    shuffled_limit: float
    stream: float
    stream_offset: float
    strength: float
    scores: tuple[tuple[float, ...], ...]

    @property
    def is_boundary(self) -> bool:
        """Whether it beats 99% of its random heads, at the same offset on other prompts too.

        And it must look more like a diagonal than like the product of the values.
        """
        return min(self.correlation, self.held_out) > max(self.random_limit, self.monotone)


def scores_of(query: ClassMeans, key: ClassMeans, head: Head) -> Float[Tensor, "query key"]:
    """Scores between classes in nats, double-centred; see `Alignment`."""
    q, k = query.queries[head], key.keys[head]
    return double_centred(q @ k.mT) * q.shape[1] ** -0.5


@torch.no_grad()
def alignments(
    backend: Backend,
    query: tuple[ClassMeans, ClassMeans],
    key: tuple[ClassMeans, ClassMeans],
    heads: Iterable[Head],
    draws: int = 200,
    seed: int = 0,
) -> tuple[Alignment, ...]:
    """Measure heads by a pair of manifolds, the best first.

    Args:
        backend: The model.
        query, key: Means over the prompts that offsets are found on, and over others; see
            `circuitkeep.geometry.class_means.class_means`.
        heads: Which.
        draws: Random heads, and shuffled orders, per head.
        seed: Of those.
    """
    values = query[0].values, key[0].values
    found, sides = [], {}
    for head in heads:
        scores, other = (scores_of(*pair, head) for pair in zip(query, key, strict=True))
        best = best_diagonal(scores, *values)
        held_out = best_diagonal(other, *values, offsets=best.offset[None])
        if head.layer not in sides:
            sides[head.layer] = tuple(
                _turned(backend, head.layer, one) for one in (query[0], key[0])
            )
        drawn = random_scores(sides[head.layer], _sides_of(backend, head), draws, seed)
        random = best_diagonal(drawn, *values).correlation
        reads = query[0].reads(head.layer), key[0].reads(head.layer)
        product = double_centred(values[0][:, None] * values[1])
        monotone = torch.nn.functional.cosine_similarity(scores.flatten(), product.flatten(), dim=0)
        shuffled = shuffled_diagonals(scores, *values, draws, seed)
        stream = best_diagonal(cosine_matrix(*reads), *values)
        found.append(
            Alignment(
                head=head,
                query=query[0].manifold.name,
                key=key[0].manifold.name,
                correlation=best.correlation.item(),
                offset=best.offset.item(),
                held_out=held_out.correlation.item(),
                random_mean=random.mean().item(),
                random_limit=random.quantile(_BEYOND).item(),
                monotone=monotone.abs().item(),
                shuffled_limit=shuffled.quantile(_BEYOND).item(),
                stream=stream.correlation.item(),
                stream_offset=stream.offset.item(),
                strength=scores.square().mean().sqrt().item(),
                scores=tuple(map(tuple, scores.tolist())),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.correlation))


def _turned(backend: Backend, layer: int, means: ClassMeans) -> TurnedSums:
    places = means.counts.shape[1]
    turns = position_turns(backend, layer, places, backend.d_head)
    if turns is None:
        turns = torch.eye(backend.d_head).expand(places, -1, -1)
    return turned_sums(means.read_sums[layer], means.counts, turns.cpu())


def _sides_of(backend: Backend, head: Head) -> tuple[HeadSide, HeadSide]:
    weights = head_weights(backend, [head.layer])
    sides = []
    for matrix, bias in ((weights.W_Q, weights.b_Q), (weights.W_K, weights.b_K)):
        own = None if bias is None else bias[0, head.index].cpu()
        sides.append(HeadSide(inner_factor(matrix[0, head.index].cpu()), own))
    return sides[0], sides[1]
