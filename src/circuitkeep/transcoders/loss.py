"""What a transcoder is trained to: the MLPs' outputs, by few features, none of them idle."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.transcoders.transcoder import CrossLayerTranscoder


def decoder_norms(W_dec: Iterable[Tensor]) -> Float[Tensor, "layer feature"]:
    """The length of what each feature writes, over all layers it writes to."""
    return torch.stack([decoders.flatten(1).norm(dim=1) for decoders in W_dec])


def reconstruction(
    error: Float[Tensor, "layer token d_model"],
) -> Float[Tensor, ""]:
    """Squared error per dimension, mean over tokens, summed over layers.

    Where each layer's outputs have variance 1 per dimension this is the sum of the layers'
    unexplained variance.
    """
    return error.float().square().mean((1, 2)).sum()


def sparsity(
    activations: Float[Tensor, "layer token feature"],
    norms: Float[Tensor, "layer feature"],
    steepness: float,
) -> Float[Tensor, ""]:
    r"""About how many features are active per token, in all layers.

    .. math:: \sum_{l, f} \tanh(c \, \lVert W^{dec}_{lf} \rVert \, a_{lf})

    Mean over tokens. The decoder's length is part of it, lest activations shrink and decoders grow.

    Source:
        Ameisen et al. 2025, "Circuit Tracing".
    """
    return torch.tanh(steepness * norms[:, None] * activations.float()).sum((0, 2)).mean()


def below_threshold(
    pre: Float[Tensor, "layer token feature"],
    threshold: Float[Tensor, "layer feature"],
    norms: Float[Tensor, "layer feature"],
) -> Float[Tensor, ""]:
    """How far features stay below their thresholds, times their decoders' length.

    Mean over tokens, summed over features. Small, it wakes features that are never active, and
    hardly touches those that are now and then.

    Source:
        Ameisen et al. 2025, "Circuit Tracing", the pre-activation loss.
    """
    short = torch.relu(threshold[:, None] - pre.float())
    return (short * norms.detach()[:, None]).sum((0, 2)).mean()


def from_dead(
    transcoder: CrossLayerTranscoder,
    pre: Float[Tensor, "layer token feature"],
    error: Float[Tensor, "layer token d_model"],
    dead: Bool[Tensor, "layer feature"],
    k: int,
) -> Float[Tensor, ""]:
    """How badly features that died reconstruct what the living ones miss.

    The `k` dead features per layer and token with the largest pre-activations. Its gradient turns
    them towards the error, so that they come back where they are of use.

    Args:
        transcoder: Whose decoders are meant.
        pre: Pre-activations.
        error: The target minus the reconstruction; no gradient goes into it.
        dead: Which features are dead.
        k: How many of them may be active.

    Returns:
        `reconstruction` of the error; 0 where no feature is dead.

    Source:
        Gao et al. 2024, arXiv:2406.04093, AuxK.
    """
    values = torch.relu(pre) * dead[:, None]
    least = values.detach().topk(min(k, values.shape[-1]), dim=-1).values[..., -1:]
    written = transcoder.decode(values * (values >= least)) - transcoder.b_dec[:, None]
    loss = reconstruction(error.detach() - written)
    # A product, not a condition: all processes take part in the same backward pass.
    return loss * dead.any()
