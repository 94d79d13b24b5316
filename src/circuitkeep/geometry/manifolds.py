"""The shape of a variable's manifold in the residual stream, with and without noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from circuitkeep.circuits import Manifold
from circuitkeep.functional.alignment import cosine_matrix
from circuitkeep.functional.manifolds import dimension
from circuitkeep.functional.shape import (
    ProbeError,
    Ripple,
    distance_share,
    gram_dimension,
    gram_fourier_shares,
    mean_turn,
    probe_error,
    ripple,
    signal_gram,
    similarity_by_distance,
)
from circuitkeep.manifolds import ManifoldRows, Samples


@dataclass(frozen=True)
class ManifoldShape:
    """What a manifold looks like; no number depends on the basis of the stream.

    Figures "of the signal" are estimated from inner products between random halves of the prompts,
    whose noise has nothing in common. Angles are in radians.

    Attributes:
        manifold: Which.
        samples, prompts: How much it was measured on.
        explained: Share of the stream's variance that lies between the classes, less what as many
            classes drawn at random would take of it. Slightly negative for a variable of which the
            stream knows nothing.
        reliability: Share of the means' variance that is signal.
        dimension: Principal components for 95% of the means' variance: too many if they are noisy.
        signal_dimension: The same of the signal: too few if they are noisy.
        turn: Mean turn between two steps, of the means; noise alone has 2.09.
        signal_turn: The same of the signal.
        distance_share: Share of the variance of the signal's cosines that distance explains.
        ripple: First dip of the signal's likeness with distance.
        similarity: The signal's likeness by distance in classes, from 0.
        fourier: The signal's share at 1, 2, 3 ... cycles over the range.
        probe: Error of a linear probe on other prompts, in the variable's unit.
        spectrum: Share of the means' variance along each principal component.
        coordinates: Of the means along their first three components; their signs are by convention.
        cosines: Of the means about their centre.
    """

    manifold: Manifold
    samples: int
    prompts: int
    explained: float
    reliability: float
    dimension: int
    signal_dimension: int
    turn: float
    signal_turn: float
    distance_share: float
    ripple: Ripple
    similarity: tuple[float, ...]
    fourier: tuple[float, ...]
    probe: ProbeError
    spectrum: tuple[float, ...]
    coordinates: tuple[tuple[float, ...], ...]
    cosines: tuple[tuple[float, ...], ...]


def manifold_shape(
    rows: ManifoldRows, samples: Samples, draws: int = 20, seed: int = 0
) -> ManifoldShape:
    """Describe a manifold.

    Args:
        rows: Its sums, see `circuitkeep.manifolds.manifold_rows`.
        samples: Of the same prompts, for the linear probe.
        draws: Random halves of the prompts.
        seed: Of the halves, and of the prompts that the probe learns from.

    Raises:
        ValueError: If a class has no sample in one of the halves, there are fewer than four prompts
            or three classes, or all class means are the same.
    """
    manifold, points = rows.manifold, rows.means()
    if len(points) < 3:
        raise ValueError(
            f"manifold {manifold.name!r} has {len(points)} classes; its shape needs three or more: "
            "name more values or a smaller step"
        )
    plain = signal_gram(points, points)
    if float(plain.trace()) <= 1e-12 * float(points.square().sum()):
        raise ValueError(
            f"manifold {manifold.name!r}: the stream is the same at all values of "
            f"{manifold.variable} there; name a later layer than {manifold.layer}"
        )
    signal = _signal(rows, draws, seed)
    values = torch.tensor([manifold.value_of(label) for label in range(manifold.classes)])
    left, lengths, _ = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    coordinates = (left * largest.sign() * lengths)[:, :3]
    similarity = similarity_by_distance(signal)
    between, count = rows.explained, int(rows.counts.sum())
    return ManifoldShape(
        manifold=manifold,
        samples=count,
        prompts=len(rows.counts),
        explained=1 - (1 - between) * (count - 1) / max(count - len(points), 1),
        reliability=float(signal.trace() / plain.trace()),
        dimension=dimension(points),
        signal_dimension=gram_dimension(signal),
        turn=mean_turn(plain),
        signal_turn=mean_turn(signal),
        distance_share=distance_share(signal),
        ripple=ripple(similarity),
        similarity=tuple(similarity.tolist()),
        fourier=tuple(gram_fourier_shares(signal).tolist()),
        probe=probe_error(samples.values, values[samples.labels], samples.row, seed),
        spectrum=tuple((lengths.square() / lengths.square().sum()).tolist()),
        coordinates=tuple(map(tuple, coordinates.tolist())),
        cosines=tuple(map(tuple, cosine_matrix(points, points).tolist())),
    )


def _signal(rows: ManifoldRows, draws: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(rows.manifold.classes, rows.manifold.classes, dtype=torch.float64)
    for _ in range(draws):
        halves = torch.randperm(len(rows.counts), generator=generator).tensor_split(2)
        total += signal_gram(rows.means(halves[0]), rows.means(halves[1])) / draws
    return total
