"""Entering a model half-way, with the residual stream of an earlier pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def stream(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments of a layer."""
    return args[0] if args else kwargs["hidden_states"]


def with_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with another residual stream."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


@contextmanager
def entering(layers: Sequence[nn.Module], layer: int, hidden: Tensor) -> Iterator[None]:
    """Inside, `layers` below `layer` compute nothing, and `hidden` is what enters `layer`.

    Only the layers' own ``forward`` is exchanged, so that masks, positions and the unembedding
    stay the model's business, of whatever architecture it is.
    """

    def pass_on(*args: Any, **kwargs: Any) -> Tensor:
        return stream(args, kwargs)

    def enter(*args: Any, **kwargs: Any) -> Tensor:
        return hidden

    with ExitStack() as stack:
        for module in layers[: max(layer - 1, 0)]:
            stack.enter_context(_forward(module, pass_on))
        if layer > 0:
            stack.enter_context(_forward(layers[layer - 1], enter))
        else:
            handle = layers[0].register_forward_pre_hook(
                lambda module, args, kwargs: with_stream(args, kwargs, hidden), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    # Something else may have exchanged it too (accelerate): then its own comes back.
    missing = object()
    before = module.__dict__.get("forward", missing)
    module.forward = forward
    try:
        yield
    finally:
        if before is missing:
            del module.forward
        else:
            module.forward = before  # pyright: ignore[reportAttributeAccessIssue]
