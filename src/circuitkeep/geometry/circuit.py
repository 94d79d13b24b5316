"""All that is measured about a circuit's manifolds, and about the heads between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

from circuitkeep.capture import Backend
from circuitkeep.circuits import Circuit, Head, Manifold
from circuitkeep.geometry.alignment import Alignment, alignments
from circuitkeep.geometry.class_means import class_means
from circuitkeep.geometry.manifolds import ManifoldShape, manifold_shape
from circuitkeep.geometry.place_cells import Tiling, tiling
from circuitkeep.geometry.transforms import HeadTransform, Part, head_transforms, manifold_parts
from circuitkeep.manifolds import manifold_rows, manifold_samples
from circuitkeep.probes import ProbeBatch
from circuitkeep.transcoders import CrossLayerTranscoder


@dataclass(frozen=True)
class CircuitGeometry:
    """The geometry of a circuit's manifolds in one model.

    Attributes:
        circuit: Its name.
        prompts: How many rows each figure is of.
        shapes: Of each manifold.
        parts: Of each, by its name: what writes it.
        alignments: Of every head that reads two manifolds, the best first; see `pairs_of`.
        transforms: Of every head that reads a manifold.
        tilings: Place cells of each manifold; empty without a transcoder.
    """

    circuit: str
    prompts: int
    shapes: tuple[ManifoldShape, ...]
    parts: Mapping[str, tuple[Part, ...]]
    alignments: tuple[Alignment, ...]
    transforms: tuple[HeadTransform, ...]
    tilings: tuple[Tiling, ...]


def pairs_of(manifolds: tuple[Manifold, ...]) -> list[tuple[Manifold, Manifold]]:
    """Query and key: every pair of manifolds of different variables, and each with itself."""
    return [
        (query, key)
        for query, key in product(manifolds, manifolds)
        if query.variable != key.variable or query is key
    ]


def circuit_geometry(
    backend: Backend,
    circuit: Circuit,
    train: ProbeBatch,
    held_out: ProbeBatch,
    transcoder: CrossLayerTranscoder | None = None,
    draws: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CircuitGeometry:
    """Measure a circuit's manifolds.

    Args:
        backend: The model.
        circuit: With manifolds.
        train: Prompts on which the offsets of heads are found.
        held_out: Prompts on which these are checked, and all else is measured.
        transcoder: Whose features may be place cells; None for none.
        draws: Random heads per head.
        seed: Of all that is drawn.
        progress: Told how much is done, of how much.

    Raises:
        CircuitError: If a variable is not known, or a class has no sample.
        ValueError: If the circuit has no manifolds, or a layer is outside the model.
    """
    manifolds = circuit.manifolds
    if not manifolds:
        raise ValueError(
            f"circuit {circuit.name!r} names no manifolds; add some, as in manifolds: {{count: "
            "{variable: position, layer: 1, values: [1, 30]}}"
        )
    circuit.check_model(backend.n_layers, backend.n_heads)
    pairs = pairs_of(manifolds)
    total = len(pairs) + 2 * len(manifolds)
    found, checked = (class_means(backend, batch, manifolds) for batch in (train, held_out))
    rows = manifold_rows(backend, held_out, manifolds)
    samples = manifold_samples(backend, held_out, manifolds)
    shapes = []
    for done, one in enumerate(manifolds):
        shapes.append(manifold_shape(rows[one.name], samples[one.name], seed=seed))
        progress(done + 1, total)
    aligned: list[Alignment] = []
    for done, (query, key) in enumerate(pairs, len(manifolds)):
        aligned += alignments(
            backend,
            (found[query.name], checked[query.name]),
            (found[key.name], checked[key.name]),
            _readers(backend, query, key),
            draws,
            seed,
        )
        progress(done + 1, total)
    transforms: list[HeadTransform] = []
    for done, one in enumerate(manifolds, len(pairs) + len(manifolds)):
        readers = _readers(backend, one)
        transforms += head_transforms(backend, checked[one.name], readers, draws, seed)
        progress(done + 1, total)
    return CircuitGeometry(
        circuit=circuit.name,
        prompts=len(held_out),
        shapes=tuple(shapes),
        parts={one.name: manifold_parts(backend, checked[one.name]) for one in manifolds},
        alignments=tuple(aligned),
        transforms=tuple(transforms),
        tilings=()
        if transcoder is None
        else tuple(tiling(backend, transcoder, held_out, one) for one in manifolds),
    )


def _readers(backend: Backend, *manifolds: Manifold) -> list[Head]:
    """The heads of all layers that come after the manifolds."""
    first = max(one.layer for one in manifolds) + 1
    layers = range(first, backend.n_layers)
    return [Head(layer, index) for layer in layers for index in range(backend.n_heads)]
