"""Where the MLPs of Hugging Face models read the residual stream and where they write to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuitkeep.capture.base import probe_mode
from circuitkeep.capture.resume import stream
from circuitkeep.capture.sites import Sites
from circuitkeep.circuits import Head

if TYPE_CHECKING:
    from circuitkeep.capture.hf import HFBackend

_MODULES = ("mlp", "feed_forward")
# In this order: where there is a norm before the MLP alone, the other stands behind the attention.
_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm")
_NORM_BEHIND = "post_feedforward_layernorm"


@dataclass(frozen=True)
class MLP:
    """One layer's MLP.

    Attributes:
        norm: What it reads goes through this first.
        last: What it adds to the residual stream comes out of this.
        parallel: Whether it reads what the attention reads, not what that has added to.
    """

    norm: nn.Module
    last: nn.Module
    parallel: bool = False

    def listen(
        self, read: Callable[[Tensor], None], written: Callable[[Tensor], Tensor]
    ) -> list[RemovableHandle]:
        """Call `read` with what it reads, and replace what it adds by what `written` returns."""

        def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            read(stream(args, kwargs))

        def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
            # Mixtures of experts return their routing too.
            if isinstance(output, Tensor):
                return written(output)
            return (written(output[0]), *output[1:])

        return [
            self.norm.register_forward_pre_hook(before, with_kwargs=True),
            self.last.register_forward_hook(after),
        ]


@torch.no_grad()
def find_mlps(backend: HFBackend) -> list[MLP]:
    """Find every layer's MLP by the names of its modules, and verify it on three tokens.

    Raises:
        ValueError: If a layer has none that is known, or its parts do not add up.
    """
    named = [_named(layer) for layer in backend.layers]
    layers, heads = range(backend.n_layers), range(backend.n_heads)
    everything = tuple(Head(layer, index) for layer in layers for index in heads)
    tokens = torch.tensor([[0, 1, 0]], device=backend.device)
    reads: dict[int, Tensor] = {}
    writes: dict[int, Tensor] = {}

    def written(layer: int, value: Tensor) -> Tensor:
        writes[layer] = value
        return value

    with (
        ExitStack() as stack,
        probe_mode(backend.model),
        backend.by_itself(),
        backend.capture(Sites(result=everything, resid=(-1, *layers))) as captured,
    ):
        for layer, mlp in enumerate(named):
            hooks = mlp.listen(partial(reads.__setitem__, layer), partial(written, layer))
            for hook in hooks:
                stack.callback(hook.remove)
        backend.forward(tokens)
    heads_add = captured.result.unflatten(1, (backend.n_layers, -1)).sum(2)
    return [
        _verified(
            backend.layers[layer],
            mlp,
            (reads.get(layer), writes.get(layer)),
            (captured.resids[layer - 1], heads_add[:, layer], captured.resids[layer]),
        )
        for layer, mlp in enumerate(named)
    ]


def _named(layer: Any) -> MLP:
    modules = [getattr(layer, name, None) for name in _MODULES]
    norms = [getattr(layer, name, None) for name in _NORMS]
    module = next((m for m in modules if isinstance(m, nn.Module)), None)
    norm = next((n for n in norms if isinstance(n, nn.Module)), None)
    if module is None or norm is None:
        what = f"module named {' or '.join(_MODULES)}" if module is None else "norm of a known name"
        raise _unknown(layer, f"it has no {what}")
    return MLP(norm, getattr(layer, _NORM_BEHIND, module))


def _verified(
    layer: nn.Module,
    mlp: MLP,
    own: tuple[Tensor | None, Tensor | None],
    stream: tuple[Tensor, Tensor, Tensor],
) -> MLP:
    read, written = own
    before, heads_add, after = stream
    if read is None or written is None or read.shape != after.shape != written.shape:
        raise _unknown(layer, "it reads or writes something else")
    exact = after.dtype in (torch.float32, torch.float64)
    tolerance = (1e-4 if exact else 2e-2) * after.abs().max()

    def alike(first: Tensor, second: Tensor) -> bool:
        return bool((first - second).abs().max() <= tolerance)

    if alike(read + written, after):
        return mlp
    # The attention adds its heads, and a bias that is the same at every position.
    bias = after - before - written - heads_add
    if alike(read, before) and alike(bias, bias[:, :1]):
        return replace(mlp, parallel=True)
    raise _unknown(layer, "what it writes is not added to the residual stream as it is")


def _unknown(layer: nn.Module, why: str) -> ValueError:
    return ValueError(f"cannot tell what the MLP of {type(layer).__name__} does: {why}")
