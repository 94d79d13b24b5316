"""What a model's MLPs read and write at every token of a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode


class Harvest(NamedTuple):
    """What the MLPs of all layers read from the residual stream and add to it."""

    inputs: Float[Tensor, "token layer d_model"]
    outputs: Float[Tensor, "token layer d_model"]


def harvest(
    backend: Backend,
    tokens: Int[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    rows_at_once: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Harvest]:
    """The activations at the tokens of `mask`, some rows at a time, on the CPU.

    Args:
        backend: The model.
        tokens: Right-padded.
        mask: Which tokens count.
        rows_at_once: Rows per forward pass.
        dtype: What the activations are kept in.

    Raises:
        ValueError: If one is too large for `dtype`, or the backend cannot see MLPs.
    """
    for first in range(0, len(tokens), rows_at_once):
        part = slice(first, first + rows_at_once)
        inputs, outputs = run(backend, tokens[part])
        kept = mask[part].to(inputs.device)
        found = Harvest(*(x[:, kept].transpose(0, 1).to("cpu", dtype) for x in (inputs, outputs)))
        if not all(x.isfinite().all() for x in found):
            raise ValueError(
                f"an activation of the model is not finite as {str(dtype).removeprefix('torch.')}; "
                "keep them in bfloat16 or float32 (data.dtype=bfloat16)"
            )
        yield found


@torch.no_grad()
def run(
    backend: Backend, tokens: Int[Tensor, "row pos"]
) -> tuple[Float[Tensor, "layer row pos d_model"], Float[Tensor, "layer row pos d_model"]]:
    """What all MLPs read and write in one forward pass, in fp32."""
    layers = tuple(range(backend.n_layers))
    sites = Sites(mlp_in=layers, mlp_out=layers)
    with probe_mode(backend.model), backend.capture(sites) as captured:
        backend.forward(tokens.to(backend.device))
    inputs = torch.stack([captured.mlp_ins[layer] for layer in layers])
    outputs = torch.stack([captured.mlp_outs[layer] for layer in layers])
    return inputs.float(), outputs.float()
