"""The function that transformers' attention interface calls in the place of its kernels.

It calls the fused kernel for the output as before, hands every call to whoever listens to the
calling module, and is registered once, when this module is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from circuitkeep.capture.base import gather_queries
from circuitkeep.capture.edits import Edit, Edits, edited, edited_heads
from circuitkeep.circuits import Head

PREFIX = "circuitkeep_"


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the attention interface."""

    module: nn.Module
    query: Float[Tensor, "batch head pos d_head"]
    key: Float[Tensor, "batch kv_head pos d_head"]
    value: Float[Tensor, "batch kv_head pos d_value"]
    mask: Tensor | None
    options: Mapping[str, Any]


Listener = Callable[[Call, Tensor], Tensor]
# Keyed by module, not by layer number: several models may be alive, and numbers may repeat.
LISTENERS: dict[nn.Module, Listener] = {}
DISCOVERY: list[Listener] = []


def _attention(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if base == "eager":
            # Each architecture has its own (softcap, sinks); it is not in the registry.
            attention = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attention = ALL_ATTENTION_FUNCTIONS[base]
        output, weights = attention(module, query, key, value, attention_mask, **options)
        listener = DISCOVERY[-1] if DISCOVERY else LISTENERS.get(module)
        if listener is not None:
            call = Call(module, query, key, value, attention_mask, options)
            output = listener(call, output)
        return output, weights

    return attend


for _base in ("sdpa", "eager"):
    AttentionInterface.register(PREFIX + _base, _attention(_base))
    AttentionMaskInterface.register(PREFIX + _base, ALL_MASK_ATTENTION_FUNCTIONS[_base])


def attention_pattern(
    call: Call, heads: Int[Tensor, " head"], queries: Int[Tensor, "batch kept"] | None
) -> Float[Tensor, "batch head kept key"]:
    """Post-softmax attention of `heads` at `queries`, in fp32 at least."""
    n_heads, n_kv = call.query.shape[1], call.key.shape[1]
    with torch.autocast(call.query.device.type, enabled=False):
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        query = gather_queries(call.query[:, heads].to(dtype), queries)
        key = call.key[:, heads // (n_heads // n_kv)].to(dtype)
        scaling = call.options.get("scaling")
        scaling = call.query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.transpose(-1, -2) * scaling
        softcap = call.options.get("softcap")
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        batch, _, pos, _ = call.query.shape
        if call.mask is None:
            position = torch.arange(pos, device=scores.device)
            mask = (position[:, None] >= position[None, :])[None, None]
        else:
            mask = call.mask[..., : key.shape[2]]
        mask = gather_queries(mask.expand(batch, -1, -1, -1), queries)
        if mask.shape[1] == n_heads:
            mask = mask[:, heads]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        else:
            scores = scores + mask
        return scores.softmax(-1)


def edited_output(
    call: Call, output: Float[Tensor, "batch pos head d"], edits: Sequence[Edits], layer: int
) -> Float[Tensor, "batch pos head d"]:
    """The outputs of a layer's heads after `edits`, in their order."""
    for each in edits:
        inputs = {*each.q, *each.k, *each.v, *each.pattern}
        again = {h: _attend_alone(call, h, each) for h in inputs if h.layer == layer}
        output = edited_heads(edited_heads(output, again, layer), each.z, layer)
    return output


def _attend_alone(call: Call, head: Head, edits: Edits) -> Float[Tensor, "batch pos d"]:
    """The output of one head, of its edited inputs or pattern."""
    n_heads = call.query.shape[1]

    def own(values: Tensor, edit: Edit | None) -> Tensor:
        group = n_heads // values.shape[1]
        return edited(values[:, head.index // group], edit)[:, None]

    mask = call.mask
    if mask is not None and mask.shape[1] == n_heads:
        mask = mask[:, head.index, None]
    alone = replace(
        call,
        query=own(call.query, edits.q.get(head)),
        key=own(call.key, edits.k.get(head)),
        value=own(call.value, edits.v.get(head)),
        mask=mask,
    )
    first = torch.zeros(1, dtype=torch.long, device=call.query.device)
    pattern = edited(attention_pattern(alone, first, None)[:, 0], edits.pattern.get(head))
    return pattern @ alone.value[:, 0].to(pattern.dtype)
