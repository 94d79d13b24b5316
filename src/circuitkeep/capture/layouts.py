"""Where architectures keep q, k, v and o, their norms, and how they turn queries.

Fused layouts cannot be told apart by their shapes (interleaved or not), so they are known by class
name. What is unknown is refused by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from circuitkeep.capture.affine import (
    Affine,
    Norm,
    if_there,
    inner_module,
    read_affine,
    read_norm,
    unknown,
    wide_dtype,
)
from circuitkeep.capture.base import Backend
from circuitkeep.capture.hf import HFBackend, _out_projection

_NORMS_BEFORE = ("input_layernorm", "ln_1", "self_attn_layer_norm")
_NORMS_AT_THE_END = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_OTHER_QK_NORMS = ("q_layernorm", "k_layernorm", "query_layernorm", "key_layernorm")
# Kinds of rotary embedding whose angles depend on the position alone.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")


class Projections(NamedTuple):
    """One attention layer: q, k and v per (key-value) head, o with the heads side by side."""

    q: Affine
    k: Affine
    v: Affine
    o: Affine


def projections(backend: Backend, layer: int, fold_norm: bool) -> Projections:
    """Read q, k, v and o of one layer; see `circuitkeep.capture.weights.head_weights`."""
    attention, block = _place(backend, layer)
    n_heads, width = backend.n_heads, backend.d_head
    if isinstance(backend, HFBackend):
        q, k, v = _separate_heads(attention, n_heads, width)
        o = read_affine(_out_projection(attention))
    else:
        parts = (read_affine(_child(attention, name)) for name in "qkv")
        q, k, v = _grouped(attention, list(parts), n_heads, width)
        o = read_affine(_child(attention, "o"))
    shapes = [tuple(part.matrix.shape[1:]) for part in (q, k, v)]
    if shapes[0][1] != shapes[1][1] or n_heads % shapes[1][0] or len(o.matrix) != n_heads * width:
        raise unknown(attention, f"q, k, v of {shapes} (heads, width) before {len(o.matrix)}")
    if fold_norm:
        before, after = _norms(backend, block, q.matrix.shape[0])
        q, k, v = (part.after(before) for part in (q, k, v))
        q, k = (_normed(attention, part, name) for part, name in ((q, "q_norm"), (k, "k_norm")))
        o = Affine(o.matrix.to(wide_dtype(o.matrix)), o.bias).scaled(after.scale)
    return Projections(q, k, v, o)


def norm_before(backend: Backend, layer: int) -> nn.Module:
    """The norm between the residual stream and a layer's attention."""
    block: Any = _place(backend, layer)[1]
    _refuse_norms_in_the_stream(block)
    names = _NORMS_BEFORE if isinstance(backend, HFBackend) else ("ln1",)
    return _norm_named(block, names)


def token_maps(backend: Backend, fold_norm: bool) -> tuple[Tensor, Affine]:
    """Read embedding and unembedding; see `circuitkeep.capture.weights.token_weights`."""
    model: Any = backend.model
    if isinstance(backend, HFBackend):
        embed, unembed = model.get_input_embeddings(), model.get_output_embeddings()
        owner, names = model.get_decoder(), _NORMS_AT_THE_END
    else:
        embed, unembed, owner, names = model.embed, model.unembed, model, ("ln_final",)
    embed, out = inner_module(embed), read_affine(unembed)
    if not isinstance(embed, nn.Embedding):
        raise unknown(embed, "an embedding that looks up something else")
    scale = getattr(embed, "embed_scale", None)  # Gemma multiplies what it looks up
    embedding = embed.weight if scale is None else embed.weight * scale
    d_model = len(out.matrix)
    if embedding.shape[1] != d_model:
        raise ValueError(
            f"{type(model).__name__} embeds tokens in {embedding.shape[1]} dimensions and unembeds "
            f"from {d_model}; the projections in between are not supported"
        )
    return embedding, out.after(_first_norm(owner, names, d_model)) if fold_norm else out


def rotation(backend: Backend, layer: int) -> Callable[[Tensor, int], Tensor] | None:
    """The function ``(W_Q of one layer, offset) -> turned W_Q``; None if nothing is turned.

    It calls the model's own rotary module and the function of its own that applies it.
    """
    attention: Any = inner_module(_place(backend, layer)[0])
    own = getattr(attention, "rotary", None)
    if own is not None and hasattr(own, "apply_rope"):  # TransformerLens' native models
        return lambda w_q, offset: own.apply_rope(
            w_q[None], w_q[None], position_ids=_positions(w_q, offset, w_q.shape[1])
        )[0][0]
    source = vars(sys.modules[type(attention).__module__])
    rotary = any("rotary" in name.lower() for name in source)
    if not rotary or not getattr(attention, "use_rope", True):
        return None

    model: Any = backend.model

    def turn(w_q: Tensor, offset: int) -> Tensor:
        whole = model if isinstance(backend, HFBackend) else model.original_model
        named = [m for name, m in whole.named_modules() if name.split(".")[-1] == "rotary_emb"]
        modules: list[Any] = list({id(m): m for m in map(inner_module, named)}.values())
        apply = source.get("apply_rotary_pos_emb")
        takes = list(signature(apply).parameters)[:4] if callable(apply) else None
        kinds = [getattr(module, "rope_type", "default") for module in modules]
        if takes != ["q", "k", "cos", "sin"] or len(kinds) != 1 or kinds[0] not in _FIXED_ROPE:
            raise ValueError(
                f"{type(attention).__name__} turns queries and keys in a way that is not known, or "
                f"that depends on the prompt (rotary modules: {kinds}, applied to {takes}); only "
                "offset=0 is possible"
            )
        wide = w_q[None].to(wide_dtype(w_q))
        cos, sin = modules[0](wide, _positions(w_q, offset, 1))
        temperature = getattr(modules[0], "attention_scaling", 1.0)
        turned, rest = wide.split([cos.shape[-1], w_q.shape[-1] - cos.shape[-1]], dim=-1)
        turned = apply(turned, turned, cos / temperature, sin / temperature)[0]  # type: ignore[misc]
        return torch.cat([turned, rest], dim=-1)[0]

    return turn


def _separate_heads(attention: Any, n_heads: int, width: int) -> tuple[Affine, Affine, Affine]:
    classes = {cls.__name__ for cls in type(attention).__mro__}
    own = n_heads * width
    if isinstance(getattr(attention, "q_proj", None), nn.Module):
        parts = (read_affine(_child(attention, f"{name}_proj")) for name in "qkv")
        return _grouped(attention, list(parts), n_heads, width)
    if "GPT2Attention" in classes:
        fused = read_affine(attention.c_attn)
        ends = (0, own, 2 * own, 3 * own)
    elif "Phi3Attention" in classes:
        fused = read_affine(attention.qkv_proj)
        groups = (fused.matrix.shape[1] - own) // 2
        ends = (0, own, own + groups, own + 2 * groups)
    elif "GPTNeoXAttention" in classes:
        fused = read_affine(attention.query_key_value).per_head(n_heads, 3, width)
        return tuple(
            Affine(fused.matrix[:, :, i], if_there(fused.bias, lambda b, i=i: b[:, i]))
            for i in range(3)
        )  # type: ignore[return-value]
    else:
        children = ", ".join(name for name, _ in attention.named_children())
        raise unknown(attention, f"projections named {children}")
    parts = (fused.columns(*pair) for pair in pairwise(ends))
    return _grouped(attention, list(parts), n_heads, width)


def _grouped(
    attention: nn.Module, parts: list[Affine], n_heads: int, width: int
) -> tuple[Affine, Affine, Affine]:
    q, k, v = parts
    n_kv = v.matrix.shape[1] // width
    sizes = [part.matrix.shape[1] for part in parts]
    if not n_kv or sizes[0] % n_heads or sizes[1] % n_kv or sizes[2] % width:
        raise unknown(attention, f"q, k, v of {sizes} columns for {n_heads} heads of {width}")
    return q.per_head(n_heads, -1), k.per_head(n_kv, -1), v.per_head(n_kv, width)


def _place(backend: Backend, layer: int) -> tuple[nn.Module, nn.Module]:
    """Attention module and the block around it."""
    if isinstance(backend, HFBackend):
        return backend._attentions[layer], backend._layers[layer]
    blocks: Any = backend.model.blocks
    return blocks[layer].attn, blocks[layer]


def _norms(backend: Backend, block: Any, d_model: int) -> tuple[Norm, Norm]:
    """The norms before the attention and, if there is one, between its output and the stream."""
    _refuse_norms_in_the_stream(block)
    if not isinstance(backend, HFBackend):
        after = getattr(block, "ln1_post", None)
        return _first_norm(block, ("ln1",), d_model), _outgoing(after, d_model)
    # Elsewhere the norm of this name is the one before the MLP.
    sandwich = hasattr(block, "post_feedforward_layernorm")
    after = block.post_attention_layernorm if sandwich else None
    return _first_norm(block, _NORMS_BEFORE, d_model), _outgoing(after, d_model)


def _refuse_norms_in_the_stream(block: Any) -> None:
    if not getattr(inner_module(block), "do_layer_norm_before", True):
        raise unknown(inner_module(block), "its norms in the residual stream: no folding")


def _first_norm(owner: Any, names: tuple[str, ...], width: int) -> Norm:
    return read_norm(_norm_named(owner, names), width)


def _norm_named(owner: Any, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if isinstance(norm := getattr(owner, name, None), nn.Module):
            return norm
    raise unknown(owner, f"no norm named {' or '.join(names)}, so that it cannot be folded")


def _outgoing(norm: Any, width: int) -> Norm:
    found = Norm() if norm is None else read_norm(norm, width)
    if found.centred:
        raise unknown(norm, "a centring norm on the attention's output")
    return found


def _normed(attention: Any, part: Affine, name: str) -> Affine:
    """A projection with the scale of the norm on its heads folded in."""
    others = [n for n in _OTHER_QK_NORMS if isinstance(getattr(attention, n, None), nn.Module)]
    if others:
        raise unknown(attention, f"a norm named {others[0]}, which cannot be folded")
    norm = getattr(attention, name, None)
    if not isinstance(norm, nn.Module):
        return part
    shape = part.matrix.shape[1:]
    size = getattr(inner_module(norm), "weight", part.matrix[0, 0]).numel()
    found = read_norm(norm, size)
    if found.centred or size not in (shape[1], shape.numel()):
        raise unknown(norm, f"a {name} of {size} for heads of {tuple(shape)}")
    return part.scaled(
        if_there(found.scale, lambda s: s if size == shape[1] else s.unflatten(0, shape))
    )


def _child(attention: nn.Module, name: str) -> nn.Module:
    child = getattr(attention, name, None)
    if not isinstance(child, nn.Module):
        raise unknown(inner_module(attention), f"no projection named {name}")
    return child


def _positions(like: Tensor, offset: int, times: int) -> Tensor:
    return torch.full((1, times), offset, device=like.device)
