"""Virtual weights: which heads read the directions that other heads write to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.functional.composition import (
    Kind,
    composition_score,
    composition_z,
    reader_factors,
    rotated_composition_baseline,
)
from circuitkeep.functional.transforms import polar, principal_angles
from circuitkeep.functional.weights import factored_singular_values

_KINDS: tuple[Kind, ...] = ("Q", "K", "V")


@dataclass(frozen=True)
class Channel:
    """A way through the residual stream from what one head writes to what another reads.

    Attributes:
        writer, reader: Heads; the writer's layer comes first.
        kind: What the reader uses it for: query, key or value. Heads that share their keys and
            values read the same as K and as V.
        overlap: Mean squared cosine of the principal angles between all that the writer can write
            and all that the reader can read.
        angle: The smallest of these angles, in radians.
        composition: Elhage et al.'s score, which also counts how strongly each direction is written
            and read.
        random: Mean of `composition` over the same two heads turned at random.
        z: Standard deviations by which `composition` lies above that.
    """

    writer: Head
    reader: Head
    kind: Kind
    overlap: float
    angle: float
    composition: float
    random: float
    z: float


@dataclass(frozen=True)
class Channels:
    """All ways from any head to any later one.

    Attributes:
        strongest: Those with the largest `Channel.z`.
        pairs: How many there are in all.
        overlap: Mean overlap of all.
        random_overlap: Mean and 99% quantile of the overlap of random subspaces of the same size.
        above: Share of all whose overlap exceeds that quantile; .01 by chance.
    """

    strongest: tuple[Channel, ...]
    pairs: int
    overlap: float
    random_overlap: tuple[float, float]
    above: float


@torch.no_grad()
def channels(backend: Backend, top: int = 20, draws: int = 200, seed: int = 0) -> Channels:
    """Compare every head's output with every later head's inputs, norms folded in.

    Raises:
        ValueError: If the model has one layer, so that no head comes after another.
    """
    if backend.n_layers < 2:
        raise ValueError("the model has one layer: no head reads what another writes")
    weights = head_weights(backend, fold_norm=True)
    maps = weights.W_Q, weights.W_K, weights.W_V, weights.W_O
    d_model = weights.W_Q.shape[2]
    w_v, w_o = weights.W_V[:-1].flatten(0, 1), weights.W_O[:-1].flatten(0, 1)
    writer_values = factored_singular_values(w_v, w_o)
    heads = [Head(*at) for at in product(range(backend.n_layers), range(backend.n_heads))]
    n_writers = len(w_v)
    written = polar(w_v, w_o).written
    later = torch.tensor([[w.layer < r.layer for r in heads] for w in heads[:n_writers]])
    figures: list[tuple[Tensor, ...]] = []
    for kind in _KINDS:
        a, b = (factor.flatten(0, 1) for factor in reader_factors(*maps, kind))
        read = polar(a, b).read
        score = composition_score(w_v, w_o, a, b)
        null = rotated_composition_baseline(
            writer_values, factored_singular_values(a, b), d_model, draws, seed
        )
        z = composition_z(score, null)
        figures.append((_overlaps(written, read), score, null.mean, z, read))
    overlaps = torch.stack([each[0] for each in figures])[:, later.to(written.device)]
    random = _random_overlaps(d_model, written.shape[2], figures[0][4].shape[2], draws, seed)
    limit = random.quantile(0.99)
    places = [
        (float(z[w, r]), kind, int(w), int(r))
        for kind, (_, _, _, z, _) in enumerate(figures)
        for w, r in later.nonzero()
        if not bool(z[w, r].isnan())
    ]
    strongest = []
    for z, kind, w, r in sorted(places, reverse=True)[:top]:
        overlap, score, mean, _, read = figures[kind]
        strongest.append(
            Channel(
                writer=heads[w],
                reader=heads[r],
                kind=_KINDS[kind],
                overlap=overlap[w, r].item(),
                angle=principal_angles(written[w], read[r])[0].item(),
                composition=score[w, r].item(),
                random=mean[w, r].item(),
                z=z,
            )
        )
    return Channels(
        strongest=tuple(strongest),
        pairs=overlaps.numel(),
        overlap=overlaps.mean().item(),
        random_overlap=(random.mean().item(), limit.item()),
        above=(overlaps > limit.to(overlaps)).double().mean().item(),
    )


def _overlaps(
    written: Float[Tensor, "writer d r"], read: Float[Tensor, "reader d s"]
) -> Float[Tensor, "writer reader"]:
    """`circuitkeep.functional.transforms.subspace_overlap` of all pairs of orthonormal frames."""
    smaller = min(written.shape[2], read.shape[2])
    rows = [torch.einsum("di,rdj->rij", own, read).square().sum((1, 2)) for own in written]
    return torch.stack(rows) / smaller


def _random_overlaps(d: int, r: int, s: int, draws: int, seed: int) -> Float[Tensor, " draw"]:
    generator = torch.Generator().manual_seed(seed)
    frames = [
        torch.linalg.qr(torch.randn(draws, d, size, generator=generator)).Q for size in (r, s)
    ]
    return (frames[0].mT @ frames[1]).square().sum((1, 2)) / min(r, s)
