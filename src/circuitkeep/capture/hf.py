"""Capture on a plain Hugging Face model, through transformers' attention interface.

The interface hands a function q (after the rotation), k and v (unrepeated), mask and scaling of
every architecture that uses it. The function calls the fused kernel for the output as before, and
computes ``softmax(q k)`` only for the asked heads and queries. It is in place only inside
`HFBackend.forward`: the user's own forward passes never see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitkeep.capture.base import (
    Backend,
    StopForwardError,
    gather_queries,
    probe_mode,
)
from circuitkeep.capture.edits import edited
from circuitkeep.capture.interface import (
    DISCOVERY,
    LISTENERS,
    PREFIX,
    Call,
    Listener,
    attention_pattern,
    edited_output,
)
from circuitkeep.capture.mlps import MLP, find_mlps
from circuitkeep.capture.resume import stream, with_stream
from circuitkeep.capture.sites import Captured, Sites
from circuitkeep.circuits import Head

_OUT_PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense", "wo")


class HFBackend(Backend):
    """A `transformers.PreTrainedModel` with a language-model head; see `circuitkeep.capture`."""

    model: PreTrainedModel  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._base = _base_attention(model)
        # The config of every attention module (a text model inside a larger one has its own).
        self._configs = {
            id(config): config
            for module in model.modules()
            if (config := getattr(module, "config", None)) is not None
            and hasattr(config, "_attn_implementation")
        }
        self._unembeds_some = "logits_to_keep" in signature(model.forward).parameters
        calls = self._discover()
        self._attentions = [call.module for call in calls]
        self.n_layers = len(calls)
        self.n_heads = calls[0].query.shape[1]
        self.d_head = calls[0].value.shape[-1]
        self._layers = [_enclosing_layer(model, module) for module in self._attentions]
        self._indices: dict[tuple[Head, ...], Tensor] = {}

    @cached_property
    def mlps(self) -> list[MLP]:
        """Where every layer's MLP reads and writes; found, and verified, when first asked for.

        Raises:
            ValueError: If it cannot be told; the message names the layer's class.
        """
        return find_mlps(self)

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return self._layers

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.model.config.get_text_config().vocab_size

    @property
    def context_length(self) -> int:
        """``max_position_embeddings`` of the config."""
        return self.model.config.get_text_config().max_position_embeddings

    def check_sites(self, sites: Sites) -> None:
        """See `Backend.check_sites`."""
        super().check_sites(sites)
        if sites.mlps:
            _ = self.mlps

    def _logits(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " kept"] | None
    ) -> Float[Tensor, "batch kept vocab"]:
        keep = {}
        if positions is not None and self._unembeds_some:
            keep["logits_to_keep"] = positions
        with self._listening():
            logits = self.model(input_ids=tokens, use_cache=False, **keep).logits
        return logits if positions is None or keep else logits[:, positions]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        asked = [captured.sites for captured in self._open]
        asked += [edits.sites for edits in self._edits]
        layers = {head.layer for sites in asked for head in sites.heads}
        resid = {layer for sites in asked for layer in sites.resid}
        mlps = {layer for sites in asked for layer in sites.mlps}
        stop = self._stop_after()
        handles = [
            self._layers[layer].register_forward_hook(self._layer_hook(layer, layer == stop))
            for layer in (resid - {-1}) | ({stop} if stop >= 0 else set())
        ]
        if -1 in resid:
            first = self._layers[0]
            handles.append(first.register_forward_pre_hook(self._entry_hook, with_kwargs=True))
        for layer in mlps:
            read, written = partial(self._mlp_in, layer), partial(self._mlp_out, layer)
            handles += self.mlps[layer].listen(read, written)
        for layer in layers:
            ends = layer == stop and stop not in resid | mlps
            LISTENERS[self._attentions[layer]] = self._listener(layer, ends)
        try:
            with self._implementation():
                yield
        finally:
            for layer in layers:
                LISTENERS.pop(self._attentions[layer], None)
            for handle in handles:
                handle.remove()

    @contextmanager
    def _implementation(self) -> Iterator[None]:
        # The internal name, not the property: its setter would write into sub-configs as well.
        names = {key: c._attn_implementation_internal for key, c in self._configs.items()}
        for config in self._configs.values():
            config._attn_implementation_internal = PREFIX + self._base
        try:
            yield
        finally:
            for key, config in self._configs.items():
                config._attn_implementation_internal = names[key]

    def _listener(self, layer: int, ends: bool) -> Listener:
        def listen(call: Call, output: Tensor) -> Tensor:
            output = edited_output(call, output, self._edits, layer)
            for captured in self._open:
                self._record(layer, call, output, captured)
            if ends:  # nobody reads what the layer makes of its attention
                raise StopForwardError
            return output

        return listen

    def _record(self, layer: int, call: Call, output: Tensor, captured: Captured) -> None:
        sites, queries = captured.sites, captured.queries
        heads = tuple(head for head in sites.pattern if head.layer == layer)
        if heads:
            pattern = attention_pattern(call, self._index(heads), queries)
            captured.patterns.update(zip(heads, pattern.unbind(1), strict=True))
        for name, values in (("q", call.query), ("k", call.key), ("v", call.value)):
            group = self.n_heads // values.shape[1]
            for head in getattr(sites, name):
                if head.layer == layer:
                    getattr(captured, name + "s")[head] = values[:, head.index // group]
        heads = tuple(head for head in sites.z if head.layer == layer)
        if heads:
            z = gather_queries(output.transpose(1, 2)[:, self._index(heads)], queries)
            captured.zs.update(zip(heads, z.unbind(1), strict=True))
        heads = tuple(head for head in sites.result if head.layer == layer)
        if heads:
            z = gather_queries(output.transpose(1, 2)[:, self._index(heads)], queries)
            result = self._write(call.module, z, self._index(heads))
            captured.results.update(zip(heads, result.unbind(1), strict=True))

    def _write(
        self,
        module: nn.Module,
        z: Float[Tensor, "batch head query d_head"],
        heads: Int[Tensor, " head"],
    ) -> Float[Tensor, "batch head query d_model"]:
        # Through the module itself, the other heads silent, so that adapters on it count too.
        project = _out_projection(module)
        spread = torch.nn.functional.one_hot(heads, self.n_heads).to(z.dtype)
        alone = torch.einsum("bhqd,hn->bhqnd", z, spread).flatten(3)
        return project(alone) - project(torch.zeros_like(alone[:1, :1, :1]))

    def _layer_hook(self, layer: int, stop: bool) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            hidden = self._stream(layer, output if isinstance(output, Tensor) else output[0])
            if stop:
                raise StopForwardError
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return hook

    def _entry_hook(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        return with_stream(args, kwargs, self._stream(-1, stream(args, kwargs)))

    def _mlp_in(self, layer: int, read: Float[Tensor, "batch pos d_model"]) -> None:
        for captured in self._open:
            if layer in captured.sites.mlp_in:
                captured.mlp_ins[layer] = read

    def _mlp_out(
        self, layer: int, written: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        for edits in self._edits:
            written = edited(written, edits.mlp.get(layer))
        for captured in self._open:
            if layer in captured.sites.mlp_out:
                captured.mlp_outs[layer] = written
        return written

    def _index(self, heads: tuple[Head, ...]) -> Int[Tensor, " head"]:
        if heads not in self._indices:
            self._indices[heads] = torch.tensor([h.index for h in heads], device=self.device)
        return self._indices[heads]

    def _discover(self) -> list[Call]:
        """Run three tokens through the model, to see which modules attend, in which order.

        The pattern computed here must reproduce each head's output: that is what catches an
        attention that this backend does not know (sinks, biases, an unknown mask).
        """
        calls: list[Call] = []
        errors: list[float] = []
        dtypes: set[torch.dtype] = set()

        def listen(call: Call, output: Tensor) -> Tensor:
            heads = torch.arange(call.query.shape[1], device=call.query.device)
            pattern = attention_pattern(call, heads, None)
            value = call.value[:, heads // (len(heads) // call.value.shape[1])]
            rebuilt = pattern @ value.to(pattern.dtype)
            errors.append((rebuilt - output.transpose(1, 2).to(pattern.dtype)).abs().max().item())
            calls.append(call)
            dtypes.add(output.dtype)
            return output

        name = type(self.model).__name__
        tokens = torch.tensor([[0, 1, 0]], device=self.device)
        # Mixed precision would compute some of what is compared here in half, some in full; that
        # which accelerate puts into the model's own forward cannot be turned off from here.
        full = torch.autocast(self.device.type, enabled=False)
        DISCOVERY.append(listen)
        try:
            with torch.no_grad(), probe_mode(self.model), self._implementation(), full:
                self.model(input_ids=tokens, use_cache=False)
        finally:
            DISCOVERY.pop()
        if not calls:
            raise ValueError(
                f"{name} does not use transformers' attention interface, so its patterns cannot "
                "be captured here; wrap it in transformer_lens.TransformerBridge instead"
            )
        tolerance = 1e-4 if dtypes <= {torch.float32, torch.float64} else 5e-2
        if max(errors) > tolerance:
            raise ValueError(
                f"the attention of {name} is not softmax(q k) v (largest difference "
                f"{max(errors):.2g}; sinks, a position bias, attention to later tokens?), so its "
                "patterns cannot be captured here; if it is a causal model, wrap it in "
                "transformer_lens.TransformerBridge instead"
            )
        shapes = {(call.query.shape[1], call.value.shape[-1]) for call in calls}
        if len(shapes) > 1:
            raise ValueError(f"{name} has layers with different numbers of heads: not supported")
        return calls


def _base_attention(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    softcap = getattr(config, "attn_logit_softcapping", None) is not None
    # A flash or flex kernel in training: the probe's own forward pass runs on sdpa.
    return "eager" if config._attn_implementation in ("eager", None) or softcap else "sdpa"


def _out_projection(module: nn.Module) -> nn.Module:
    for name in _OUT_PROJECTIONS:
        if isinstance(child := getattr(module, name, None), nn.Module):
            return child
    raise ValueError(
        f"cannot find the output projection W_O of {type(module).__name__} (looked for "
        f"{', '.join(_OUT_PROJECTIONS)}); use the site 'z' instead of 'result'"
    )


def _enclosing_layer(model: nn.Module, attention: nn.Module) -> nn.Module:
    names = {module: name for name, module in model.named_modules()}
    path = names[attention].split(".")
    for depth in range(len(path) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(path[: depth - 1])), nn.ModuleList):
            return model.get_submodule(".".join(path[:depth]))
    raise ValueError(f"cannot find the layers of {type(model).__name__}: no ModuleList around them")
