"""What the two capture backends share: passes that are recorded, edited, resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from circuitkeep.capture.edits import Edit, Edits, edited
from circuitkeep.capture.resume import count_extras, entering
from circuitkeep.capture.sites import Captured, Sites
from circuitkeep.circuits import Head


class StopForwardError(Exception):
    """Raised inside a forward pass once the last asked site has fired; never leaves `forward`."""


class Backend(ABC):
    """A causal language model whose heads can be read and replaced.

    Attributes:
        model: The module that `forward` calls.
        n_layers: Layers with attention.
        n_heads: Query heads per layer.
        d_head: Width of a head's output before W_O.
        sharded: Whether processes hold the weights in shards that they join layer by layer (FSDP).
            Every pass is run whole then: stopping one would leave the shards half-joined.
    """

    model: nn.Module
    n_layers: int
    n_heads: int
    d_head: int

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sharded = any(_is_sharded(module) for module in model.modules())
        self._open: list[Captured] = []
        self._edits: list[Edits] = []
        self._extras: int | None = None
        # The first layer that runs, in a pass that is resumed.
        self._entered = -1

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live."""
        return next(self.model.parameters()).device

    @property
    @abstractmethod
    def _blocks(self) -> Sequence[nn.Module]:
        """The modules that map the residual stream before a layer to the one after it."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The modules with attention inside, first to last."""
        return self._blocks

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The longest prompt the model was made for."""

    @contextmanager
    def capture(
        self, sites: Sites, queries: Int[Tensor, "batch query"] | None = None
    ) -> Iterator[Captured]:
        """Record `sites` of each forward pass; the latest stays.

        Args:
            sites: Heads and layers to record.
            queries: Per row, the query positions at which patterns and head outputs are wanted
                (all if None).

        Raises:
            ValueError: If a head or layer is outside the model.
        """
        self.check_sites(sites)
        captured = Captured(sites, queries)
        self._open.append(captured)
        try:
            yield captured
        finally:
            self._open = [other for other in self._open if other is not captured]

    @contextmanager
    def edit(self, edits: Edits) -> Iterator[None]:
        """Replace what the model computes, in every forward pass; inner contexts come last.

        Raises:
            ValueError: If a head or layer is outside the model, or the backend cannot edit a site.
        """
        self.check_sites(edits.sites)
        own = replace(edits)  # one object per context, even where contexts share their edits
        self._edits.append(own)
        try:
            yield
        finally:
            self._edits = [other for other in self._edits if other is not own]

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """Run the model without the edits and captures that are open."""
        outer = self._open, self._edits
        self._open, self._edits = [], []
        try:
            yield
        finally:
            self._open, self._edits = outer

    def ablate(self, values: Mapping[Head, Edit]) -> AbstractContextManager[None]:
        """Replace the outputs (before W_O) of some heads in every forward pass.

        Args:
            values: Per head, a vector, or anything that broadcasts to ``batch pos d_head``, or
                what makes it of the head's own output.
        """
        return self.edit(Edits(z=values))

    def resume(
        self,
        layer: int,
        hidden: Float[Tensor, "batch pos d_model"],
        tokens: Int[Tensor, "batch pos"],
        positions: Int[Tensor, " kept"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"] | None:
        """Run the model from `layer` on, as if `hidden` had entered it.

        The layers below are not computed. Masks and positions are made by the model itself, so
        this works for whatever architecture the backend does.

        Args:
            layer: The first layer that runs; ``n_layers`` for the unembedding alone.
            hidden: The residual stream that enters it.
            tokens: The tokens it came from, right-padded.
            positions: See `forward`.

        Raises:
            ValueError: If an open capture asks for a site below `layer`.
        """
        if not 0 <= layer <= self.n_layers:
            raise ValueError(f"layer {layer}: resume at a layer from 0 to {self.n_layers}")
        for captured in self._open:
            first = min(captured.sites.layers, default=layer)
            if first < layer:
                raise ValueError(
                    f"a pass that resumes at layer {layer} cannot capture layer {first}"
                )
        if self._extras is None:
            with torch.no_grad():
                # Past the edits and captures that are open.
                self._extras = count_extras(self._blocks[0], lambda: self.model(tokens[:1]))
        self._entered = layer
        try:
            with entering(self._blocks, layer, hidden, self._extras):
                return self.forward(tokens, positions)
        finally:
            self._entered = -1

    @abstractmethod
    def _logits(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " kept"] | None
    ) -> Float[Tensor, "batch kept vocab"]: ...

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        positions: Int[Tensor, " kept"] | None = None,
    ) -> Float[Tensor, "batch kept vocab"] | None:
        """Run the model on right-padded tokens, no further than the open captures need.

        No attention mask is passed: behind a causal mask, padding on the right cannot reach a
        real position, and without one the fused kernels keep their fast path.

        Args:
            tokens: Right-padded.
            positions: Positions whose logits are wanted (all if None).

        Returns:
            The logits, or None if an open capture did not ask for them and the pass was cut short.
        """
        try:
            logits = self._logits(tokens, positions)
        except StopForwardError:
            return None
        for captured in self._open:
            captured.logits = logits
        return logits

    def check_sites(self, sites: Sites) -> None:
        """Refuse heads and layers that the model does not have."""
        for head in sites.heads:
            if head.layer >= self.n_layers or head.index >= self.n_heads:
                raise ValueError(
                    f"head {head} is outside the model, whose heads run from L0H0 to "
                    f"L{self.n_layers - 1}H{self.n_heads - 1}"
                )
        for layer in (*sites.resid, *sites.mlps):
            if not -(layer in sites.resid) <= layer < self.n_layers:
                raise ValueError(
                    f"layer {layer} is outside the model, which has {self.n_layers} layers"
                )

    def _stream(
        self, layer: int, hidden: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after `layer`: edited, and recorded by the open captures."""
        if layer >= self._entered:  # what enters a resumed pass has been edited before
            for edits in self._edits:
                hidden = edited(hidden, edits.resid.get(layer))
        for captured in self._open:
            if layer in captured.sites.resid:
                captured.resids[layer] = hidden
        return hidden

    def _stop_after(self) -> int:
        """The layer after which the forward pass may end; -1 to run it whole."""
        if self.sharded or not self._open or any(c.sites.logits for c in self._open):
            return -1
        return max(c.sites.last_layer for c in self._open)


def gather_queries(
    values: Shaped[Tensor, "batch head query d"], queries: Int[Tensor, "batch kept"] | None
) -> Shaped[Tensor, "batch head kept d"]:
    """The rows `queries` of the query axis, per batch row."""
    if queries is None:
        return values
    index = queries[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index)


@contextmanager
def probe_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off, random state untouched, compiled graphs bypassed; every flag is put back.

    The flags are set one by one, because a user's module may override ``train``. A module that is
    not in training does not checkpoint its activations either (transformers), and torch's
    ``CheckpointWrapper`` passes through, so hooks fire once.
    """
    # A bridge keeps the model it wraps, and the dropout of its embedding, out of `modules`.
    wrapped = getattr(model, "original_model", None)
    everything = {*model.modules(), *(wrapped.modules() if isinstance(wrapped, nn.Module) else ())}
    flags = [module for module in everything if module.training]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    wrappers = [module for module in everything if isinstance(module, CheckpointWrapper)]
    own = [wrapper.checkpoint_fn for wrapper in wrappers]
    for module in flags:
        module.training = False
    for wrapper in wrappers:
        wrapper.checkpoint_fn = partial(_straight)
    try:
        with (
            torch.random.fork_rng(devices=[d.index for d in devices]),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for module in flags:
            module.training = True
        for wrapper, checkpoint in zip(wrappers, own, strict=True):
            wrapper.checkpoint_fn = checkpoint


def _straight(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FullyShardedDataParallel | FSDPModule)
