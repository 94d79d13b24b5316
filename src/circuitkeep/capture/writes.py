"""What every part of a model adds to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitkeep.capture.base import Backend, probe_mode
from circuitkeep.capture.sites import Sites
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head


@dataclass(frozen=True)
class Writes:
    """What adds up to the residual stream that the final norm reads, at some positions.

    Attributes:
        embedding: What enters layer 0.
        heads: After W_O, without its bias.
        biases: Of W_O, per layer.
        mlps: All else that a layer adds.
        final: The sum of it all, as the model computed it.
        logits: Of the same pass.
    """

    embedding: Float[Tensor, "batch kept d_model"]
    heads: Float[Tensor, "batch layer head kept d_model"]
    biases: Float[Tensor, "layer d_model"]
    mlps: Float[Tensor, "batch layer kept d_model"]
    final: Float[Tensor, "batch kept d_model"]
    logits: Float[Tensor, "batch kept vocab"]


@torch.no_grad()
def writes(
    backend: Backend, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " kept"]
) -> Writes:
    """Run the model once and take the residual stream at `positions` apart.

    Raises:
        ValueError: If a layer does not add its heads to the stream as they are (a norm or a
            multiplier stands behind the attention), so that the parts would be wrong.
    """
    layers, heads = range(backend.n_layers), range(backend.n_heads)
    everything = tuple(Head(layer, index) for layer in layers for index in heads)
    sites = Sites(result=everything, resid=(-1, *layers), logits=True)
    queries = positions.expand(len(tokens), -1)
    with (
        probe_mode(backend.model),
        _outputs(backend._blocks, positions, len(tokens)) as outputs,
        backend.capture(sites, queries) as captured,
    ):
        logits = backend.forward(tokens, positions)
    assert logits is not None
    resid = captured.resid[:, :, positions]
    result = captured.result.unflatten(1, (backend.n_layers, backend.n_heads))
    biases = head_weights(backend).b_O
    if biases is None:
        biases = resid.new_zeros(backend.n_layers, resid.shape[-1])
    mlps = resid.diff(dim=1) - result.sum(2) - biases[:, None]
    for layer in layers:
        _check(backend, layer, mlps[:, layer], resid[:, layer : layer + 2], outputs[layer])
    return Writes(resid[:, 0], result, biases, mlps, resid[:, -1], logits)


def final_scale(
    backend: Backend,
    final: Float[Tensor, "batch kept d_model"],
    logits: Float[Tensor, "batch kept vocab"],
    w_u: Float[Tensor, "d_model vocab"],
    b_u: Float[Tensor, " vocab"] | None,
) -> Float[Tensor, "batch kept"]:
    """What the final norm divided by, read off the logits themselves.

    Args:
        backend: Of the model, which is named in the message.
        final: What the final norm read.
        logits: What came of it.
        w_u: The unembedding with that norm folded in.
        b_u: Its bias.

    Raises:
        ValueError: If the logits are not a norm and an unembedding of the stream (a softcap).
    """
    # Read off, not computed: norms differ in where they add their epsilon.
    raw = final.to(w_u) @ w_u
    wide = logits.to(w_u)
    shifted = wide if b_u is None else wide - b_u
    scale = raw.square().sum(-1) / (raw * shifted).sum(-1)
    tolerance = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 5e-2
    error = (raw / scale[..., None] - shifted).abs().max()
    if not error <= tolerance * shifted.abs().max():
        raise ValueError(
            f"the logits of {type(backend.model).__name__} are not a norm and an unembedding of "
            f"the residual stream (largest difference {error.item():.2g}; a softcap?), so they "
            "cannot be attributed directly; use patching instead"
        )
    return scale


def _check(
    backend: Backend, layer: int, mlp: Tensor, resid: Tensor, outputs: Sequence[Tensor]
) -> None:
    """What a layer adds beyond its heads must be the output of one of its modules."""
    scale = resid.abs().max().item()
    tolerance = scale * (1e-4 if mlp.dtype in (torch.float32, torch.float64) else 2e-2)
    alike = [output for output in outputs if output.shape == mlp.shape]
    # An attention-only layer adds nothing beyond them.
    if any((mlp - output).abs().max() <= tolerance for output in (torch.zeros_like(mlp), *alike)):
        return
    raise ValueError(
        f"layer {layer} of {type(backend.model).__name__} does not add its heads' writes to the "
        "residual stream as they are (a norm or a multiplier behind the attention?), so there is "
        "no direct attribution to heads; use patching instead"
    )


@contextmanager
def _outputs(
    layers: Sequence[nn.Module], positions: Tensor, batch: int
) -> Iterator[list[list[Tensor]]]:
    """Whatever the modules inside each layer put out in the shape of the residual stream."""
    found: list[list[Tensor]] = [[] for _ in layers]

    def keep(index: int, output: object) -> None:
        value = output[0] if isinstance(output, tuple) and output else output
        # Some layers run their MLP on all positions in one row.
        if isinstance(value, Tensor) and value.ndim in (2, 3) and not len(value) % batch:
            rows = value.reshape(batch, -1, value.shape[-1])
            if rows.shape[1] > int(positions.max()):
                found[index].append(rows[:, positions])

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            for module in layer.modules():
                handle = module.register_forward_hook(
                    lambda module, args, output, index=index: keep(index, output)
                )
                stack.callback(handle.remove)
        yield found
