"""Linear layers and norms as matrices, adapters included; what is unknown is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_FAR = 1000.0  # so far from 0 that the epsilon of a norm does not count


class Affine(NamedTuple):
    """``x matrix + bias``; the outputs of a projection may have a head axis of their own."""

    matrix: Float[Tensor, "d_in *out"]
    bias: Float[Tensor, "*out"] | None

    def columns(self, start: int, stop: int) -> Affine:
        """Some of the outputs, as views."""
        return Affine(self.matrix[:, start:stop], if_there(self.bias, lambda b: b[start:stop]))

    def per_head(self, *sizes: int) -> Affine:
        """The outputs along several axes, as views."""
        return Affine(
            self.matrix.unflatten(1, sizes), if_there(self.bias, lambda b: b.unflatten(0, sizes))
        )

    def scaled(self, scale: Tensor | None) -> Affine:
        """Outputs multiplied by `scale`."""
        if scale is None:
            return self
        return Affine(self.matrix * scale, if_there(self.bias, lambda b: b * scale))

    def after(self, norm: Norm) -> Affine:
        """Preceded by what `norm` does to every token alike."""
        matrix, bias = self.matrix.to(wide_dtype(self.matrix)), self.bias
        rows = (-1, *[1] * (matrix.ndim - 1))
        # Not products of matrices: autocast would run those in half precision.
        if norm.shift is not None:
            shift = (norm.shift.to(matrix).view(rows) * matrix).sum(0)
            bias = shift if bias is None else bias + shift
        if norm.scale is not None:
            matrix = norm.scale.to(matrix).view(rows) * matrix
        return Affine(matrix - matrix.mean(0) if norm.centred else matrix, bias)


class Norm(NamedTuple):
    """The part of a norm that does not depend on the data."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    centred: bool = False


def read_norm(module: nn.Module, width: int) -> Norm:
    """What a norm does whatever its input: told by its class, or by two inputs far from 0."""
    norm: Any = inner_module(module)
    if isinstance(norm, nn.Identity):
        return Norm()
    if isinstance(norm, nn.LayerNorm):
        return Norm(norm.weight, norm.bias, centred=True)
    like = next(norm.parameters(), torch.zeros(()))
    inputs = torch.ones(2, width, dtype=like.dtype, device=like.device)
    inputs[1, ::3] = -2
    ones, other = norm(inputs * _FAR)
    wide = inputs[1].to(wide_dtype(inputs))
    tolerance = 1e-4 if like.dtype in (torch.float32, torch.float64) else 2e-2
    for found in (Norm(ones), Norm(centred=True)):
        expected = wide - wide.mean() if found.centred else wide * ones
        size = (wide - wide.mean() if found.centred else wide).square().mean().sqrt()
        if torch.allclose(other.to(wide), expected / size, rtol=tolerance, atol=tolerance):
            return found
    raise unknown(norm, "neither a root-mean-square norm nor a LayerNorm")


def read_affine(module: Any) -> Affine:
    """A linear layer, adapters on it included."""
    module = inner_module(module)
    layer, changes = module, []
    if hasattr(module, "base_layer"):
        layer = module.base_layer
        if not getattr(module, "disable_adapters", False) and not getattr(module, "merged", False):
            changes = [_lora(module, name) for name in module.active_adapters]
    if not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point():
        raise unknown(layer, "a projection that is no plain linear layer (quantized?)")
    weight = layer.weight
    for change in changes:
        weight = weight if change is None else weight + change
    return Affine(weight if isinstance(layer, Conv1D) else weight.T, layer.bias)


def _lora(module: Any, adapter: str) -> Tensor | None:
    if not hasattr(module, "get_delta_weight") or not hasattr(module, "lora_B"):
        raise unknown(module, "an adapter that is not LoRA")
    if adapter not in module.lora_B:
        return None
    if (
        adapter in getattr(module, "lora_variant", {})
        or getattr(module.lora_B[adapter], "bias", None) is not None
    ):
        raise unknown(module, f"a variant of LoRA in adapter {adapter!r} (DoRA, a bias)")
    return module.get_delta_weight(adapter)


def inner_module(module: Any) -> Any:
    """What a bridge's component stands for."""
    inner = vars(module).get("_modules", {}).get("_original_component")
    return module if inner is None else inner_module(inner)


def unknown(module: object, what: str) -> ValueError:
    """The error for what is not known, with the name of its class."""
    return ValueError(f"cannot read the weights of {type(module).__name__}: it has {what}")


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def if_there(value: Tensor | None, function: Callable[[Tensor], Tensor]) -> Tensor | None:
    """`function` of the value, if there is one."""
    return None if value is None else function(value)
