"""What makes features sparse in training, and the gradients it is given."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).to(gradient)
        jump = gradient * threshold * near / ctx.bandwidth
        to_threshold = (-jump).sum_to_size(threshold.shape)
        return gradient * (pre > threshold) + jump, to_threshold, None


def jump_relu(
    pre: Float[Tensor, "layer token feature"],
    threshold: Float[Tensor, "layer #token feature"],
    bandwidth: float,
) -> Float[Tensor, "layer token feature"]:
    r"""Pre-activations above the threshold, whole; the others are 0.

    The jump has no gradient. In its place stands that of a slope of width `bandwidth` around the
    threshold, as if :math:`H'(u) = \frac{1}{\epsilon} [|u| < \epsilon / 2]`, for the threshold and
    for the pre-activation alike:

    .. math:: \partial_z = H(z - \theta) + \theta H'(z - \theta), \quad
        \partial_\theta = - \theta H'(z - \theta)

    Args:
        pre: Pre-activations.
        threshold: Not below 0.
        bandwidth: In the units of `pre`.

    Source:
        Rajamanoharan et al. 2024, arXiv:2407.14435, for the threshold; Ameisen et al. 2025,
        https://transformer-circuits.pub/2025/attribution-graphs/methods.html, appendix "Cross-Layer
        Transcoder", for the pre-activation too.
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


def top_k(
    pre: Float[Tensor, "layer token feature"],
    worth: Float[Tensor, "layer #token feature"],
    k: int,
) -> Float[Tensor, "layer token feature"]:
    """The `k` features per layer and token with the largest pre-activation times `worth`.

    Those that are not above 0 stay inactive. The gradient is that of the features kept.

    Source:
        Gao et al. 2024, arXiv:2406.04093.
    """
    scores = (pre * worth).detach()
    least = scores.topk(k, dim=-1).values[..., -1:]
    return pre * ((scores >= least) & (pre > 0))


def largest(
    scores: Float[Tensor, "layer token feature"], number: int
) -> Float[Tensor, "layer kept"]:
    """The `number` largest scores of each layer, in no order; all, if there are no more."""
    flat = scores.flatten(1)
    return flat.topk(min(number, flat.shape[1]), sorted=False).values


def above(
    pre: Float[Tensor, "layer token feature"],
    worth: Float[Tensor, "layer #token feature"],
    least: Float[Tensor, " layer"],
) -> Float[Tensor, "layer token feature"]:
    """The features whose pre-activation times `worth` reaches their layer's `least`.

    With the least of the `largest` scores of a batch, k per token, this is BatchTopK: k features
    per token on average, more where they are worth more.

    Source:
        Bussmann et al. 2024, arXiv:2412.06410.
    """
    scores = (pre * worth).detach()
    return pre * ((scores >= least[:, None, None]) & (pre > 0))
