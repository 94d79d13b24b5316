"""Adding losses to somebody's LightningModule, and taking them away without a trace.

`training_step` is the place: Lightning divides the loss by accumulation after it, the gradient
scaler comes later still, and DDP and FSDP run it inside the wrapped forward pass, so that a probe
forward made there belongs to the same graph. It is made before the step's own: backward runs in
reverse, so the probe's gradients, as large as the model, are made when the step's activations are
gone. Under manual optimization the loss goes to `manual_backward` instead, once per training step,
however many optimizers there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule
from torch import Tensor

from circuitkeep.guard.due import Due, losses_of

LossSource = Callable[[], Due | None]
"""Called once inside every training step; None when nothing is due."""


class _Wrapped:
    """One module's wrapped methods and whose losses they add.

    One wrapper serves all sources, so that they may come and go in any order.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.sources: list[LossSource] = []
        self.later: list[Callable[[], Tensor | None]] = []
        self.pending = False
        self.before = {}
        if module.automatic_optimization:
            self._replace("training_step", self._automatic)
        else:
            self._replace("training_step", self._manual)
            self._replace("manual_backward", self._backward)

    def undo(self) -> None:
        for name, own in self.before.items():
            if own is None:
                delattr(self.module, name)
            else:
                setattr(self.module, name, own)

    def _replace(self, name: str, make: Callable[[Callable], Callable]) -> None:
        self.before[name] = self.module.__dict__.get(name)
        original = getattr(self.module, name)
        # Lightning reads the signature of training_step through __wrapped__.
        setattr(self.module, name, functools.wraps(original)(make(original)))

    def _automatic(self, original: Callable) -> Callable:
        def step(*args: Any, **kwargs: Any) -> Any:
            due = self._due()
            losses = losses_of(due)
            output = original(*args, **kwargs)
            losses += self._made()
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if loss is None:  # a batch that is skipped; a mapping without a loss is refused later
                for one in due:
                    one.drop()
                return output
            for added in losses:
                loss = loss + added
            return {**output, "loss": loss} if isinstance(output, Mapping) else loss

        return step

    def _manual(self, original: Callable) -> Callable:
        def step(*args: Any, **kwargs: Any) -> Any:
            self.pending = True
            return original(*args, **kwargs)

        return step

    def _backward(self, original: Callable) -> Callable:
        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if self.pending:
                self.pending = False
                for added in losses_of(self._due()) + self._made():
                    loss = loss + added
            original(loss, *args, **kwargs)

        return backward

    def _due(self) -> list[Due]:
        return [found for source in self.sources if (found := source()) is not None]

    def _made(self) -> list[Tensor]:
        return [made for source in self.later if (made := source()) is not None]


_WRAPPED: WeakKeyDictionary[LightningModule, _Wrapped] = WeakKeyDictionary()


def add_loss(module: LightningModule, source: LossSource) -> None:
    """Add `source` to the loss of every training step of `module`, until `remove_loss`."""
    _wrapped(module).sources.append(source)


def add_loss_of_step(module: LightningModule, source: Callable[[], Tensor | None]) -> None:
    """Add what `source` makes of the training step's own forward pass, until `remove_loss`.

    It is called after that pass, once per training step, and its loss may be dropped.
    """
    _wrapped(module).later.append(source)


def remove_loss(module: LightningModule, source: Callable[[], Any]) -> None:
    """Take `source` away; the last one leaves the module as it was. Unknown sources are ignored."""
    wrapped = _WRAPPED.get(module)
    if wrapped is None:
        return
    for sources in (wrapped.sources, wrapped.later):
        if source in sources:
            sources.remove(source)
    if not wrapped.sources and not wrapped.later:
        wrapped.undo()
        del _WRAPPED[module]


def _wrapped(module: LightningModule) -> _Wrapped:
    found = _WRAPPED.get(module)
    if found is None:
        found = _WRAPPED[module] = _Wrapped(module)
    return found
