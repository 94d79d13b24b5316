"""What heads make of a manifold, and which parts of a model it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.functional.alignment import random_images
from circuitkeep.functional.manifolds import fit_similarity, transform_drift
from circuitkeep.functional.shape import signal_gram
from circuitkeep.functional.transforms import polar
from circuitkeep.geometry.class_means import ClassMeans


@dataclass(frozen=True)
class HeadTransform:
    """A head's OV map on a manifold: from the class means that it reads to what it writes of them.

    Attributes:
        head: Which.
        manifold: Name of the manifold that it reads.
        residual: Share of the variance of what it writes that no scaling, turning and moving of
            what it reads explains, from 0 to 1.
        random_mean, random_limit: Mean and 5% quantile of `residual` over random maps of the same
            singular values.
        scale: Size of what it writes over that of what it reads.
        rotation: Largest angle in radians by which it turns the manifold within its subspace.
        tilt: Largest angle in radians between the subspaces of what it reads and what it writes.
        translation: Distance of the centres, in units of the radius of what it reads.
    """

    head: Head
    manifold: str
    residual: float
    random_mean: float
    random_limit: float
    scale: float
    rotation: float
    tilt: float
    translation: float

    @property
    def keeps_shape(self) -> bool:
        """Whether it distorts the manifold less than 95% of random maps do."""
        return self.residual < self.random_limit


@torch.no_grad()
def head_transforms(
    backend: Backend, means: ClassMeans, heads: Iterable[Head], draws: int = 200, seed: int = 0
) -> tuple[HeadTransform, ...]:
    """What the OV maps of some heads make of a manifold, were they to attend to nothing else.

    Heads that write nothing of it are left out.
    """
    found = []
    for head in heads:
        weights = head_weights(backend, [head.layer])
        maps = weights.W_V[0, head.index].double().cpu(), weights.W_O[0, head.index].double().cpu()
        read = means.reads(head.layer)
        written = read @ maps[0] @ maps[1]
        spanned = int(torch.linalg.matrix_rank(written - written.mean(0), rtol=1e-6))
        if not spanned:
            continue
        drift = transform_drift(read, written, min(means.manifold.dimensions, spanned))
        own, images = random_images(
            signal_gram(read, read), polar(*maps).stretch, read.shape[1], draws, seed
        )
        random = torch.stack([fit_similarity(own, image).residual for image in images])
        found.append(
            HeadTransform(
                head=head,
                manifold=means.manifold.name,
                residual=1 - drift.shape.item(),
                random_mean=random.mean().item(),
                random_limit=random.quantile(0.05).item(),
                scale=drift.log_scale.exp().item(),
                rotation=drift.rotation.item(),
                tilt=drift.tilt.item(),
                translation=drift.translation.item(),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class Part:
    """A part of a model that writes to the residual stream, and its share of a manifold.

    Attributes:
        name: ``embedding``, ``L1H3``, ``MLP 1``, or ``the rest``: what is written by none of them,
            and rounding.
        share: Inner product of what it writes, class by class about the centre, with the manifold,
            over the manifold's squared size. All shares add up to 1; one may be negative.
    """

    name: str
    share: float


@torch.no_grad()
def manifold_parts(backend: Backend, means: ClassMeans) -> tuple[Part, ...]:
    """Which parts of a model a manifold is made of, up to its layer, the largest first."""
    last = means.manifold.layer
    whole = means.streams[last]
    written = {"embedding": means.streams[-1]}
    for layer in range(last + 1):
        weights = head_weights(backend, [layer], fold_norm=True)
        for index in range(backend.n_heads):
            head = Head(layer, index)
            written[str(head)] = means.zs[head] @ weights.W_O[0, index].double().cpu()
        written[f"MLP {layer}"] = means.mlps[layer]
    shares = {name: _share(part, whole) for name, part in written.items()}
    parts = [Part(name, share) for name, share in shares.items()]
    parts.sort(key=lambda part: -part.share)
    return (*parts, Part("the rest", 1 - sum(shares.values())))


def _share(part: Float[Tensor, "class d"], whole: Float[Tensor, "class d"]) -> float:
    part, whole = part - part.mean(0), whole - whole.mean(0)
    return ((part * whole).sum() / whole.square().sum()).item()
