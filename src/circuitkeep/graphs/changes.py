"""Changes to features, heads and paths of one prompt, and the run that they are made to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import FrozenPass, freeze
from circuitkeep.transcoders import CrossLayerTranscoder
from circuitkeep.transcoders.replacement import check_fits

C = TypeVar("C")


@dataclass(frozen=True)
class FeatureChange:
    """A feature's activation times `factor`, at one position: 0 ablates it, others steer it."""

    layer: int
    pos: int
    feature: int
    factor: float = 0.0


@dataclass(frozen=True)
class HeadChange:
    """A head's attention from one query to one key times `factor`; to all keys if None.

    The rest of the pattern stays: it does not sum to 1 any more. With `key` None and factor 0 the
    head writes nothing there (but W_O's bias, which belongs to no head).
    """

    head: Head
    query: int
    key: int | None = None
    factor: float = 0.0


@dataclass(frozen=True)
class PathChange:
    """A feature's activation times `factor`, but only for one head that reads it from one query.

    What the feature wrote to the layers below the head is changed in the head's values, with the
    clean run's pattern and norm; everything else sees the feature as it was.
    """

    layer: int
    pos: int
    feature: int
    head: Head
    query: int
    factor: float = 0.0


Change = FeatureChange | HeadChange | PathChange
Intervention = tuple[Change, ...]


@dataclass(frozen=True)
class CleanRun:
    """One prompt before any intervention.

    Attributes:
        backend: The model (a Hugging Face model).
        transcoder: None allows changes of heads alone.
        frozen: Its forward pass, taken apart.
        values: What every head moves, per key.
        activations: Of the transcoder's features; no features without a transcoder.
        errors: What the MLPs wrote beyond the transcoder.
    """

    backend: Backend
    transcoder: CrossLayerTranscoder | None
    frozen: FrozenPass
    values: Float[Tensor, "layer head pos d_value"]
    activations: Float[Tensor, "layer pos feature"]
    errors: Float[Tensor, "layer pos d_model"]


@torch.no_grad()
def clean_run(
    backend: Backend, transcoder: CrossLayerTranscoder | None, tokens: Int[Tensor, " pos"]
) -> CleanRun:
    """Run the model once.

    Raises:
        ValueError: If the transcoder is of another shape than the model, or the model's pass
            cannot be taken apart (see `circuitkeep.graphs.frozen.freeze`).
    """
    if transcoder is not None:
        check_fits(backend, transcoder)
    frozen = freeze(backend, tokens)
    heads = all_heads(backend)
    with probe_mode(backend.model), backend.capture(Sites(v=heads)) as captured:
        backend.forward(frozen.tokens[None])
    values = torch.stack([captured.vs[head][0] for head in heads]).to(frozen.W_V)
    values = values.unflatten(0, (backend.n_layers, backend.n_heads))
    if transcoder is None:
        activations = values.new_zeros(*frozen.mlp_in.shape[:2], 0)
        errors = torch.zeros_like(frozen.mlp_out)
    else:
        activations = transcoder.encode(frozen.mlp_in)
        errors = frozen.mlp_out - transcoder.decode(activations)
    return CleanRun(backend, transcoder, frozen, values, activations, errors)


def feature_writes(
    run: CleanRun, change: FeatureChange | PathChange
) -> Float[Tensor, "layer d_model"]:
    """By how much a change of a feature changes what it writes to each layer's MLP output."""
    assert run.transcoder is not None
    by = run.activations[change.layer, change.pos, change.feature] * (change.factor - 1)
    written = run.transcoder.config.written(change.layer)
    result = torch.zeros_like(run.frozen.mlp_out[:, 0])
    result[written.start : written.stop] = by * run.transcoder.W_dec[change.layer][change.feature]
    return result


def path_values(run: CleanRun, change: PathChange) -> Float[Tensor, " d_value"]:
    """By how much a changed path changes what its head reads from its query, before W_O."""
    frozen, (layer, index) = run.frozen, (change.head.layer, change.head.index)
    written = feature_writes(run, change)[:layer].sum(0) * frozen.scales[layer, change.pos]
    weight = frozen.patterns[layer, index, change.query, change.pos]
    return weight * (written @ frozen.W_V[layer, index])


def check_change(run: CleanRun, change: Change) -> None:
    """Refuse a change of what is not there.

    Raises:
        ValueError: With the change and what it lacks.
    """
    layers, positions, features = run.activations.shape
    if isinstance(change, FeatureChange | PathChange):
        if run.transcoder is None:
            raise ValueError(f"{change}: features can be changed only with a transcoder")
        size = (change.layer, change.pos, change.feature)
        if not all(0 <= at < of for at, of in zip(size, run.activations.shape, strict=True)):
            raise ValueError(
                f"{change}: there are {layers} layers, {positions} positions and {features} "
                "features per layer"
            )
    if isinstance(change, HeadChange | PathChange):
        run.backend.check_sites(Sites(z=(change.head,)))
        key = change.pos if isinstance(change, PathChange) else change.key or 0
        if not 0 <= key <= change.query < positions:
            raise ValueError(
                f"{change}: query and key are positions below {positions}, the key no later than "
                "the query"
            )
    if isinstance(change, PathChange) and change.head.layer <= change.layer:
        raise ValueError(f"{change}: a head reads what features of lower layers wrote")


def all_heads(backend: Backend) -> tuple[Head, ...]:
    """Layer by layer."""
    return tuple(
        Head(layer, index) for layer in range(backend.n_layers) for index in range(backend.n_heads)
    )


def each(rows: Sequence[Intervention], kind: type[C]) -> Iterable[tuple[int, C]]:
    """The changes of a kind, each with the row it belongs to."""
    for row, changes in enumerate(rows):
        for change in changes:
            if isinstance(change, kind):
                yield row, change
