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


def count_extras(layer: nn.Module, run: Callable[[], object]) -> int:
    """How much `layer` returns beside the residual stream when `run` runs it; -1 for no tuple."""
    found: list[int] = []
    handle = layer.register_forward_hook(
        lambda module, args, output: found.append(
            -1 if isinstance(output, Tensor) else len(output) - 1
        )
    )
    try:
        run()
    finally:
        handle.remove()
    return found[-1]


@contextmanager
def entering(
    layers: Sequence[nn.Module], layer: int, hidden: Tensor, extras: int
) -> Iterator[None]:
    """Inside, `layers` below `layer` compute nothing, and `hidden` is what enters `layer`.

    Only the layers' own ``forward`` is exchanged, so that masks, positions and the unembedding
    stay the model's business, of whatever architecture it is.

    Args:
        layers: All layers of the model.
        layer: The first that computes.
        hidden: Shape ``batch pos d_model``.
        extras: See `count_extras`.
    """

    def output(value: Tensor) -> Any:
        return value if extras < 0 else (value, *[None] * extras)

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return output(stream(args, kwargs))

    def enter(*args: Any, **kwargs: Any) -> Any:
        return output(hidden)

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
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    # In the instance's own dictionary: a bridge's blocks pass attributes on to what they wrap.
    # Something else may have exchanged it too (accelerate): then its own comes back.
    own = module.__dict__
    before = {"forward": own["forward"]} if "forward" in own else {}
    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        own.update(before)
