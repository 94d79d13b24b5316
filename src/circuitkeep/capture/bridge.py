"""Capture on a `transformer_lens.TransformerBridge`, through its hook points.

Two facts shape this file. ``hook_pattern`` fires after attention dropout, so the pattern is
computed from ``hook_attn_scores``. And bridges that delegate attention to the wrapped model
(OPT, GPT-J) pass probabilities, not scores, through ``hook_attn_scores``; which of the two a bridge
does is found out once, when the backend is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from circuitkeep.capture.base import (
    Backend,
    Captured,
    Sites,
    StopForwardError,
    gather_queries,
    probe_mode,
)
from circuitkeep.circuits import Head

_Hook = Callable[..., Tensor | None]


class BridgeBackend(Backend):
    """A `TransformerBridge`; see `circuitkeep.capture`."""

    model: TransformerBridge  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        self.n_layers = int(model.cfg.n_layers)
        self.n_heads = int(model.cfg.n_heads)
        self.d_head = int(model.cfg.d_head)
        self._captures: list[tuple[Captured, Tensor | None]] = []
        self._ablated: list[Mapping[Head, Tensor]] = []
        self._gives_probabilities = self._verify()

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.model.cfg.d_vocab)

    @property
    def context_length(self) -> int:
        """``n_ctx`` of the bridge's config."""
        return int(self.model.cfg.n_ctx)

    @contextmanager
    def capture(
        self, sites: Sites, queries: Int[Tensor, "batch query"] | None = None
    ) -> Iterator[Captured]:
        """See `Backend.capture`."""
        self.check_sites(sites)
        captured = Captured(sites)
        self._open.append(captured)
        self._captures.append((captured, queries))
        try:
            yield captured
        finally:
            self._open = [c for c in self._open if c is not captured]
            self._captures = [pair for pair in self._captures if pair[0] is not captured]

    @contextmanager
    def ablate(self, values: Mapping[Head, Tensor]) -> Iterator[None]:
        """See `Backend.ablate`."""
        self.check_sites(Sites(z=tuple(values)))
        own = dict(values)  # one object per context, even where contexts share their values
        self._ablated.append(own)
        try:
            yield
        finally:
            self._ablated = [other for other in self._ablated if other is not own]

    def _logits(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " kept"] | None
    ) -> Float[Tensor, "batch kept vocab"]:
        with self.model.hooks(fwd_hooks=self._hooks()):
            logits = self.model(tokens)
        return logits if positions is None else logits[:, positions]

    def _hooks(self) -> list[tuple[str, _Hook]]:
        hooks: list[tuple[str, _Hook]] = []
        heads = {head for captured, _ in self._captures for head in captured.sites.heads}
        heads |= {head for values in self._ablated for head in values}
        for layer in sorted({head.layer for head in heads}):
            prefix = f"blocks.{layer}.attn."
            hooks.append((prefix + "hook_attn_scores", self._pattern_hook(layer)))
            hooks.append((prefix + "hook_z", self._output_hook(layer)))
        resid = {layer for captured, _ in self._captures for layer in captured.sites.resid}
        stop = self._stop_after()
        for layer in sorted(resid | ({stop} if stop >= 0 else set())):
            hooks.append(
                (f"blocks.{layer}.hook_resid_post", self._resid_hook(layer, layer == stop))
            )
        return hooks

    def _pattern_hook(self, layer: int) -> _Hook:
        def hook(scores: Tensor, hook: Any) -> None:
            for captured, queries in self._captures:
                heads = [head for head in captured.sites.pattern if head.layer == layer]
                if not heads:
                    continue
                chosen = gather_queries(scores[:, [head.index for head in heads]], queries)
                chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
                pattern = chosen if self._gives_probabilities else chosen.softmax(-1)
                captured.patterns.update(zip(heads, pattern.unbind(1), strict=True))

        return hook

    def _output_hook(self, layer: int) -> _Hook:
        def hook(z: Tensor, hook: Any) -> Tensor | None:
            shape = z.shape
            z = z.view(*shape[:2], self.n_heads, self.d_head)
            replaced = {
                head: value
                for values in self._ablated
                for head, value in values.items()
                if head.layer == layer
            }
            if replaced:
                columns = list(z.unbind(2))
                for head, value in replaced.items():
                    columns[head.index] = value.to(z).expand_as(columns[head.index])
                z = torch.stack(columns, dim=2)
            for captured, queries in self._captures:
                self._record(layer, z, captured, queries)
            return z.view(shape) if replaced else None

        return hook

    def _record(self, layer: int, z: Tensor, captured: Captured, queries: Tensor | None) -> None:
        heads = sorted({*captured.sites.z, *captured.sites.result})
        heads = [head for head in heads if head.layer == layer]
        if not heads:
            return
        indices = [head.index for head in heads]
        chosen = gather_queries(z.transpose(1, 2)[:, indices], queries)
        for head, value in zip(heads, chosen.unbind(1), strict=True):
            if head in captured.sites.z:
                captured.zs[head] = value
            if head in captured.sites.result:
                w_o = self.model.blocks[layer].attn.W_O[head.index]
                captured.results[head] = value @ w_o

    def _resid_hook(self, layer: int, stop: bool) -> _Hook:
        def hook(resid: Tensor, hook: Any) -> None:
            for captured, _ in self._captures:
                if layer in captured.sites.resid:
                    captured.resids[layer] = resid
            if stop:
                raise StopForwardError

        return hook

    def _verify(self) -> bool:
        """Whether ``hook_attn_scores`` holds probabilities; both hooks must fire and be sound."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> _Hook:
            def hook(value: Tensor, hook: Any) -> None:
                seen[name] = value.detach()

            return hook

        names = [f"blocks.0.attn.{name}" for name in ("hook_attn_scores", "hook_pattern", "hook_z")]
        tokens = torch.tensor([[0, 1, 0]], device=self.device)
        hooks = self.model.hooks(fwd_hooks=[(name, keep(name)) for name in names])
        with torch.no_grad(), probe_mode(self.model), hooks:
            self.model(tokens)
        missing = [name for name in names if name not in seen]
        if missing:
            raise ValueError(
                f"the bridge's {missing[0]} never fires, so no pattern can be captured; boot the "
                "bridge with eager attention (its default)"
            )
        scores, pattern, _ = (seen[name].float() for name in names)
        for gives_probabilities, value in ((True, scores), (False, scores.softmax(-1))):
            if torch.allclose(value, pattern, atol=1e-3):
                return gives_probabilities
        raise ValueError(
            "the bridge's hook_attn_scores leads to other attention than its hook_pattern (sinks?),"
            " so its patterns cannot be captured"
        )
