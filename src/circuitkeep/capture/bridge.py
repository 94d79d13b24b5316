"""Capture on a `transformer_lens.TransformerBridge`, through its hook points.

Two facts shape this file. ``hook_pattern`` fires after attention dropout, so the pattern is
computed from ``hook_attn_scores``. And bridges that delegate attention to the wrapped model
(OPT, GPT-J) pass probabilities, not scores, through ``hook_attn_scores``; which of the two a bridge
does is found out once, when the backend is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from circuitkeep.capture.base import (
    Backend,
    StopForwardError,
    gather_queries,
    probe_mode,
)
from circuitkeep.capture.edits import Edits, edited_heads
from circuitkeep.capture.sites import Captured, Sites

_Hook = Callable[..., Tensor | None]


class BridgeBackend(Backend):
    """A `TransformerBridge`; see `circuitkeep.capture`."""

    model: TransformerBridge  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__(model)
        self.n_layers = int(model.cfg.n_layers)
        self.n_heads = int(model.cfg.n_heads)
        self.d_head = int(model.cfg.d_head)
        self._pattern_leads_to_z = True
        self._gives_probabilities = self._verify()

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.model.cfg.d_vocab)

    @property
    def context_length(self) -> int:
        """``n_ctx`` of the bridge's config."""
        return int(self.model.cfg.n_ctx)

    def check_sites(self, sites: Sites) -> None:
        """See `Backend.check_sites`; q, k, v and MLPs are not captured here."""
        super().check_sites(sites)
        if sites.q or sites.k or sites.v or sites.mlps:
            raise ValueError(
                "q, k, v and MLPs are captured and edited on Hugging Face models only, not on a "
                "TransformerBridge; attach to the model itself instead of its bridge"
            )

    @contextmanager
    def edit(self, edits: Edits) -> Iterator[None]:
        """See `Backend.edit`."""
        if edits.pattern and not self._pattern_leads_to_z:
            raise ValueError(
                "this bridge delegates attention to the wrapped model, so an edited pattern would "
                "have no effect; attach to the Hugging Face model itself instead of its bridge"
            )
        with super().edit(edits):
            yield

    def _logits(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " kept"] | None
    ) -> Float[Tensor, "batch kept vocab"]:
        with self.model.hooks(fwd_hooks=self._hooks()):
            logits = self.model(tokens)
        return logits if positions is None else logits[:, positions]

    def _hooks(self) -> list[tuple[str, _Hook]]:
        hooks: list[tuple[str, _Hook]] = []
        asked = [captured.sites for captured in self._open]
        asked += [edits.sites for edits in self._edits]
        for layer in sorted({head.layer for sites in asked for head in sites.heads}):
            prefix = f"blocks.{layer}.attn."
            hooks.append((prefix + "hook_attn_scores", self._pattern_hook(layer)))
            if any(head.layer == layer for edits in self._edits for head in edits.pattern):
                hooks.append((prefix + "hook_pattern", self._pattern_edit(layer)))
            hooks.append((prefix + "hook_z", self._output_hook(layer)))
        resid = {layer for sites in asked for layer in sites.resid}
        stop = self._stop_after()
        for layer in sorted(resid | ({stop} if stop >= 0 else set())):
            name = f"blocks.{layer}.hook_resid_post" if layer >= 0 else "blocks.0.hook_resid_pre"
            hooks.append((name, self._resid_hook(layer, layer == stop >= 0)))
        return hooks

    def _pattern_edit(self, layer: int) -> _Hook:
        def hook(pattern: Tensor, hook: Any) -> Tensor:
            values = pattern.transpose(1, 2)  # heads where z has them
            for edits in self._edits:
                values = edited_heads(values, edits.pattern, layer)
            return values.transpose(1, 2)

        return hook

    def _pattern_hook(self, layer: int) -> _Hook:
        def hook(scores: Tensor, hook: Any) -> None:
            for captured in self._open:
                heads = [head for head in captured.sites.pattern if head.layer == layer]
                if not heads:
                    continue
                chosen = gather_queries(scores[:, [head.index for head in heads]], captured.queries)
                chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
                pattern = chosen if self._gives_probabilities else chosen.softmax(-1)
                captured.patterns.update(zip(heads, pattern.unbind(1), strict=True))

        return hook

    def _output_hook(self, layer: int) -> _Hook:
        def hook(z: Tensor, hook: Any) -> Tensor | None:
            shape = z.shape
            z = z.view(*shape[:2], self.n_heads, self.d_head)
            for edits in self._edits:
                z = edited_heads(z, edits.z, layer)
            for captured in self._open:
                self._record(layer, z, captured)
            return z.reshape(shape)

        return hook

    def _record(self, layer: int, z: Tensor, captured: Captured) -> None:
        heads = sorted({*captured.sites.z, *captured.sites.result})
        heads = [head for head in heads if head.layer == layer]
        if not heads:
            return
        indices = [head.index for head in heads]
        chosen = gather_queries(z.transpose(1, 2)[:, indices], captured.queries)
        for head, value in zip(heads, chosen.unbind(1), strict=True):
            if head in captured.sites.z:
                captured.zs[head] = value
            if head in captured.sites.result:
                w_o = self.model.blocks[layer].attn.W_O[head.index]
                captured.results[head] = value @ w_o

    def _resid_hook(self, layer: int, stop: bool) -> _Hook:
        def hook(resid: Tensor, hook: Any) -> Tensor:
            resid = self._stream(layer, resid)
            if stop:
                raise StopForwardError
            return resid

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
        full = torch.autocast(self.device.type, enabled=False)  # as HFBackend does
        with torch.no_grad(), probe_mode(self.model), hooks, full:
            self.model(tokens)
        missing = [name for name in names if name not in seen]
        if missing:
            raise ValueError(
                f"the bridge's {missing[0]} never fires, so no pattern can be captured; boot the "
                "bridge with eager attention (its default)"
            )
        self._pattern_leads_to_z = list(seen).index(names[1]) < list(seen).index(names[2])
        tolerance = 1e-3 if seen[names[1]].dtype in (torch.float32, torch.float64) else 1e-2
        scores, pattern, _ = (seen[name].float() for name in names)
        for gives_probabilities, value in ((True, scores), (False, scores.softmax(-1))):
            if torch.allclose(value, pattern, atol=tolerance):
                return gives_probabilities
        raise ValueError(
            "the bridge's hook_attn_scores leads to other attention than its hook_pattern (sinks?),"
            " so its patterns cannot be captured"
        )
