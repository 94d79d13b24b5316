"""One scale per layer for what a transcoder reads and writes, and its folding into the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.transcoders.loss import decoder_norms
from circuitkeep.transcoders.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Scales:
    """Means, and root mean squares around them per dimension, of what MLPs read and write.

    The inputs are meant as the transcoder reads them: divided by their own root mean square where
    it does so.
    """

    input_mean: Float[Tensor, "layer d_model"]
    input_rms: Float[Tensor, " layer"]
    output_mean: Float[Tensor, "layer d_model"]
    output_rms: Float[Tensor, " layer"]


def estimate_scales(batches: Iterable[tuple[Tensor, Tensor]]) -> Scales:
    """The scales of batches of inputs and outputs, each of shape ``layer token d_model``.

    Raises:
        ValueError: If a layer reads or writes the same at every token.
    """
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    tokens = 0
    for batch in batches:
        values = torch.stack(batch).double()  # (input or output) layer token d_model
        tokens += values.shape[2]
        sums.append(values.sum(2))
        squares.append(values.square().sum((2, 3)))
    mean = torch.stack(sums).sum(0) / tokens
    width = mean.shape[-1]
    variance = torch.stack(squares).sum(0) / (tokens * width) - mean.square().mean(-1)
    size = mean.square().mean(-1)
    if (variance <= 1e-10 * size).any():
        which, layer = (variance <= 1e-10 * size).nonzero()[0].tolist()
        raise ValueError(
            f"the MLP of layer {layer} {'writes' if which else 'reads'} the same at every token: "
            "there is nothing for a transcoder to learn"
        )
    rms = variance.sqrt().float()
    mean = mean.float()
    return Scales(mean[0], rms[0], mean[1], rms[1])


@torch.no_grad()
def folded(transcoder: CrossLayerTranscoder, scales: Scales) -> CrossLayerTranscoder:
    """A transcoder in the model's own units of one that was trained on scaled activations.

    It reads and writes the same. Each feature's activation is scaled too, so that it counts how
    much is written: the decoder's length, in the units of training, is 1.
    """
    new = CrossLayerTranscoder(transcoder.config).to(transcoder.W_enc.device)
    norms = decoder_norms(transcoder.W_dec)
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    encoders = transcoder.W_enc / scales.input_rms[:, None, None]
    biases = transcoder.b_enc - torch.einsum("lfd,ld->lf", encoders, scales.input_mean)
    new.W_enc.copy_(encoders * norms[..., None])
    new.b_enc.copy_(biases * norms)
    new.threshold.copy_(transcoder.threshold * norms)
    for layer, decoders in enumerate(transcoder.W_dec):
        rms = scales.output_rms[list(transcoder.config.written(layer))]
        new.W_dec[layer].copy_(decoders * rms[None, :, None] / norms[layer][:, None, None])
    new.b_dec.copy_(transcoder.b_dec * scales.output_rms[:, None] + scales.output_mean)
    return new
