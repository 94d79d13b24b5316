"""What the two capture backends share: sites, what was captured, and the probe mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from circuitkeep.circuits import Head


@dataclass(frozen=True)
class Sites:
    """What to capture, and where; nothing else is computed or stored.

    Attributes:
        pattern: Heads whose post-softmax, dropout-free attention is wanted.
        z: Heads whose output before W_O is wanted.
        result: Heads whose write into the residual stream (after W_O, without bias) is wanted.
        resid: Layers after which the residual stream is wanted.
        logits: Whether the unembedding must run.
    """

    pattern: tuple[Head, ...] = ()
    z: tuple[Head, ...] = ()
    result: tuple[Head, ...] = ()
    resid: tuple[int, ...] = ()
    logits: bool = False

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head that some site asks for."""
        return tuple(sorted({*self.pattern, *self.z, *self.result}))

    @property
    def last_layer(self) -> int:
        """The last layer that must run, if the logits are not asked for."""
        return max([*(head.layer for head in self.heads), *self.resid], default=-1)


@dataclass
class Captured:
    """What one forward pass left at the asked sites; empty until it has run.

    Tensors are keyed by head or layer and live in the autograd graph of that forward pass.
    """

    sites: Sites
    patterns: dict[Head, Float[Tensor, "batch query key"]] = field(default_factory=dict)
    zs: dict[Head, Float[Tensor, "batch query d_head"]] = field(default_factory=dict)
    results: dict[Head, Float[Tensor, "batch query d_model"]] = field(default_factory=dict)
    resids: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "batch pos vocab"] | None = None

    @property
    def pattern(self) -> Float[Tensor, "batch head query key"]:
        """Patterns of `Sites.pattern`, in its order."""
        return self._stack("pattern", self.patterns, self.sites.pattern)

    @property
    def z(self) -> Float[Tensor, "batch head query d_head"]:
        """Outputs before W_O of `Sites.z`, in its order."""
        return self._stack("z", self.zs, self.sites.z)

    @property
    def result(self) -> Float[Tensor, "batch head query d_model"]:
        """Writes into the residual stream of `Sites.result`, in its order."""
        return self._stack("result", self.results, self.sites.result)

    @property
    def resid(self) -> Float[Tensor, "batch layer pos d_model"]:
        """Residual stream after `Sites.resid`, in its order."""
        return self._stack("resid", self.resids, self.sites.resid)

    def _stack(self, name: str, values: Mapping, keys: Sequence) -> Tensor:
        missing = [key for key in keys if key not in values]
        if missing or not keys:
            raise ValueError(
                f"nothing was captured at {name} of {missing[0] if missing else 'any head'}: "
                "run the model inside the capture context, and ask for the site"
            )
        return torch.stack([values[key] for key in keys], dim=1)


class StopForwardError(Exception):
    """Raised inside a forward pass once the last asked site has fired; never leaves `forward`."""


class Backend(ABC):
    """A causal language model whose heads can be read and replaced.

    Attributes:
        model: The module that `forward` calls.
        n_layers: Layers with attention.
        n_heads: Query heads per layer.
        d_head: Width of a head's output before W_O.
    """

    model: nn.Module
    n_layers: int
    n_heads: int
    d_head: int

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Stopping a forward pass half-way would leave FSDP's unshard state half-way too.
        self._may_stop = not any(_is_sharded(module) for module in model.modules())
        self._open: list[Captured] = []

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live."""
        return next(self.model.parameters()).device

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The longest prompt the model was made for."""

    @abstractmethod
    def capture(
        self, sites: Sites, queries: Int[Tensor, "batch query"] | None = None
    ) -> AbstractContextManager[Captured]:
        """Record `sites` of each forward pass; the latest stays.

        Args:
            sites: Heads and layers to record.
            queries: Per row, the query positions at which patterns and head outputs are wanted
                (all if None).

        Raises:
            ValueError: If a head or layer is outside the model.
        """

    @abstractmethod
    def ablate(self, values: Mapping[Head, Tensor]) -> AbstractContextManager[None]:
        """Replace the outputs (before W_O) of some heads in every forward pass.

        Args:
            values: Per head, a vector, or anything that broadcasts to ``batch pos d_head``.
        """

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
        for layer in sites.resid:
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"layer {layer} is outside the model, which has {self.n_layers} layers"
                )

    def _stop_after(self) -> int:
        """The layer after which the forward pass may end; -1 to run it whole."""
        if not self._may_stop or not self._open or any(c.sites.logits for c in self._open):
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
    not in training does not checkpoint its activations either (transformers), so hooks fire once.
    """
    # A bridge keeps the model it wraps, and the dropout of its embedding, out of `modules`.
    wrapped = getattr(model, "original_model", None)
    everything = {*model.modules(), *(wrapped.modules() if isinstance(wrapped, nn.Module) else ())}
    flags = [module for module in everything if module.training]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    for module in flags:
        module.training = False
    try:
        with (
            torch.random.fork_rng(devices=[d.index for d in devices]),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for module in flags:
            module.training = True


def _is_sharded(module: nn.Module) -> bool:
    return any(
        "FSDP" in cls.__name__ or "FullyShardedDataParallel" in cls.__name__
        for cls in type(module).__mro__
    )
