"""Sites: what may be captured, and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.circuits import Head


@dataclass(frozen=True)
class Sites:
    """What to capture, and where; nothing else is computed or stored.

    Attributes:
        pattern: Heads whose post-softmax, dropout-free attention is wanted.
        z: Heads whose output before W_O is wanted.
        result: Heads whose write into the residual stream (after W_O, without bias) is wanted.
        q, k, v: Heads whose queries, keys and values (after the rotation) are wanted, at all
            positions; under grouped-query attention a head's keys and values are its group's.
        resid: Layers after which the residual stream is wanted; -1 is what enters layer 0.
        mlp_in: Layers of which it is wanted what the MLP reads of the residual stream, before the
            norm.
        mlp_out: Layers of which it is wanted what the MLP adds to the residual stream.
        logits: Whether the unembedding must run.
    """

    pattern: tuple[Head, ...] = ()
    z: tuple[Head, ...] = ()
    result: tuple[Head, ...] = ()
    q: tuple[Head, ...] = ()
    k: tuple[Head, ...] = ()
    v: tuple[Head, ...] = ()
    resid: tuple[int, ...] = ()
    mlp_in: tuple[int, ...] = ()
    mlp_out: tuple[int, ...] = ()
    logits: bool = False

    @property
    def heads(self) -> tuple[Head, ...]:
        """Every head that some site asks for."""
        return tuple(sorted({*self.pattern, *self.z, *self.result, *self.q, *self.k, *self.v}))

    @property
    def mlps(self) -> tuple[int, ...]:
        """Every layer of whose MLP something is asked."""
        return tuple(sorted({*self.mlp_in, *self.mlp_out}))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that something is asked of; -1 for what enters the first."""
        return tuple(sorted({*(head.layer for head in self.heads), *self.resid, *self.mlps}))

    @property
    def last_layer(self) -> int:
        """The last layer that must run, if the logits are not asked for."""
        return max(self.layers, default=-1)


@dataclass
class Captured:
    """What one forward pass left at the asked sites; empty until it has run.

    Tensors are keyed by head or layer and live in the autograd graph of that forward pass.
    Where the pass is edited, z, results and the residual stream are what the model went on with;
    q, k, v and patterns are what it computed.
    """

    sites: Sites
    queries: Int[Tensor, "batch query"] | None = None
    patterns: dict[Head, Float[Tensor, "batch query key"]] = field(default_factory=dict)
    zs: dict[Head, Float[Tensor, "batch query d_head"]] = field(default_factory=dict)
    results: dict[Head, Float[Tensor, "batch query d_model"]] = field(default_factory=dict)
    qs: dict[Head, Float[Tensor, "batch pos d_qk"]] = field(default_factory=dict)
    ks: dict[Head, Float[Tensor, "batch pos d_qk"]] = field(default_factory=dict)
    vs: dict[Head, Float[Tensor, "batch pos d_head"]] = field(default_factory=dict)
    resids: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    mlp_ins: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    mlp_outs: dict[int, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
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

    @property
    def mlp_in(self) -> Float[Tensor, "batch layer pos d_model"]:
        """What the MLPs of `Sites.mlp_in` read, in its order."""
        return self._stack("mlp_in", self.mlp_ins, self.sites.mlp_in)

    @property
    def mlp_out(self) -> Float[Tensor, "batch layer pos d_model"]:
        """What the MLPs of `Sites.mlp_out` add, in its order."""
        return self._stack("mlp_out", self.mlp_outs, self.sites.mlp_out)

    def _stack(self, name: str, values: Mapping, keys: Sequence) -> Tensor:
        missing = [key for key in keys if key not in values]
        if missing or not keys:
            raise ValueError(
                f"nothing was captured at {name} of {missing[0] if missing else 'any head'}: "
                "run the model inside the capture context, and ask for the site"
            )
        return torch.stack([values[key] for key in keys], dim=1)
