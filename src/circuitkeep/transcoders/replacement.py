"""The replacement model: a model in which a transcoder stands for the MLPs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.capture import Backend, Edits, Sites
from circuitkeep.transcoders.transcoder import CrossLayerTranscoder


@contextmanager
def replaced(
    backend: Backend,
    transcoder: CrossLayerTranscoder,
    errors: Float[Tensor, "layer pos d_model"] | None = None,
    positions: Bool[Tensor, "*batch pos"] | None = None,
) -> Iterator[list[Float[Tensor, "batch pos feature"]]]:
    """Every MLP writes what the transcoder makes of the stream, layer after layer.

    Each layer's features read the stream as the replaced layers below have left it, so that errors
    go on. Attention, norms and unembedding are the model's own.

    Args:
        backend: The model.
        transcoder: What takes the place of its MLPs, of the model's sizes.
        errors: Added to what is written, as constants. With the errors of a prompt the replacement
            model computes on it what the model does.
        positions: Where MLPs are replaced; everywhere if None.

    Yields:
        The features' activations in the latest forward pass, per layer.

    Raises:
        ValueError: If the transcoder is of a model of other sizes, or the backend cannot edit MLPs.
    """
    check_fits(backend, transcoder)
    layers = tuple(range(backend.n_layers))
    active: list[Tensor] = []

    # The logits are asked for so that the pass does not end at the last MLP.
    with backend.capture(Sites(mlp_in=layers, logits=True)) as captured:

        def write(layer: int, own: Tensor) -> Tensor:
            del active[layer:]
            read = captured.mlp_ins[layer].to(transcoder.W_enc.dtype)
            active.append(transcoder.encode_layer(layer, read))
            written = transcoder.decode_layer(layer, active)
            if errors is not None:
                written = written + errors[layer].to(written)
            if positions is not None:
                written = torch.where(positions.to(own.device)[..., None], written.to(own), own)
            return written

        with backend.edit(Edits(mlp={layer: partial(write, layer) for layer in layers})):
            yield active


def check_fits(backend: Backend, transcoder: CrossLayerTranscoder) -> None:
    """Refuse a transcoder of a model of other sizes.

    Raises:
        ValueError: Naming the sizes.
    """
    config = transcoder.config
    width = backend.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if (config.n_layers, config.d_model) != (backend.n_layers, width):
        raise ValueError(
            f"the transcoder is of a model of {config.n_layers} layers of width {config.d_model}, "
            f"this model has {backend.n_layers} of width {width}; use the model it was trained on"
        )
