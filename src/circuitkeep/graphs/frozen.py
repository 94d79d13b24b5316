"""A forward pass held still, so that the residual stream is linear in what is written to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Captured, Sites, probe_mode
from circuitkeep.capture.hf import HFBackend
from circuitkeep.capture.weights import HeadWeights, head_weights, token_weights
from circuitkeep.capture.writes import final_scale
from circuitkeep.circuits import Head


@dataclass(frozen=True, eq=False)
class FrozenPass:
    r"""One prompt's forward pass with attention patterns, norm denominators and MLP outputs held.

    A head then writes :math:`s'_q \sum_k A_{qk} s_k x_k W_V W_O` and constants, with its pattern
    :math:`A` and with :math:`s`, one over what the norm before it divided by (:math:`s'` after it,
    where there is one).

    Attributes:
        tokens: Of the prompt.
        embedding: What enters layer 0.
        patterns: Of all heads.
        W_V: Values, with what the norm before them does to all tokens alike.
        W_O: What a head's output becomes in the stream.
        scales: One over the denominator of the norm before the attention.
        scales_after: The same of a norm behind the attention; 1 where there is none.
        head_constants: What the attention writes whatever the stream is: its biases.
        streams: What enters every layer, and last what the final norm reads.
        mlp_in: What every MLP reads, before its norm.
        mlp_out: What every MLP adds.
        parallel: Whether a layer's MLP reads what its attention reads.
        W_U: The unembedding, with the final norm's gain.
        b_U: Its bias; zeros without one.
        final_scale: One over the denominator of the final norm.
        logits: Of the same pass.
    """

    tokens: Int[Tensor, " pos"]
    embedding: Float[Tensor, "pos d_model"]
    patterns: Float[Tensor, "layer head query key"]
    W_V: Float[Tensor, "layer head d_model d_value"]
    W_O: Float[Tensor, "layer head d_value d_model"]
    scales: Float[Tensor, "layer pos"]
    scales_after: Float[Tensor, "layer pos"]
    head_constants: Float[Tensor, "layer pos d_model"]
    streams: Float[Tensor, "layer_1 pos d_model"]
    mlp_in: Float[Tensor, "layer pos d_model"]
    mlp_out: Float[Tensor, "layer pos d_model"]
    parallel: tuple[bool, ...]
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, " vocab"]
    final_scale: Float[Tensor, " pos"]
    logits: Float[Tensor, "pos vocab"]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.patterns.shape[0]

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return self.patterns.shape[1]

    def attend(
        self, layer: int, x: Float[Tensor, "*rest pos d_model"]
    ) -> Float[Tensor, "*rest pos d_model"]:
        """What the heads of a layer write if `x` enters it; constants apart."""
        z = self._heads(layer, x).movedim(-3, -2).flatten(-2)
        return self.scales_after[layer][:, None] * (z @ self.W_O[layer].flatten(0, 1))

    def attend_heads(
        self, layer: int, x: Float[Tensor, "*rest pos d_model"]
    ) -> Float[Tensor, "*rest head pos d_model"]:
        """The same, head by head."""
        return self.scales_after[layer][:, None] * (self._heads(layer, x) @ self.W_O[layer])

    def pull(
        self, layer: int, gradient: Float[Tensor, "*rest pos d_model"]
    ) -> Float[Tensor, "*rest pos d_model"]:
        """The transpose of `attend`: a gradient at what the layer's heads write, pulled back."""
        read = (self.scales_after[layer][:, None] * gradient) @ self.W_O[layer].flatten(0, 1).T
        heads = read.unflatten(-1, (self.n_heads, -1)).movedim(-2, -3)
        values = (self.patterns[layer].mT @ heads).movedim(-3, -2).flatten(-2)
        return self.scales[layer][:, None] * (values @ self._values(layer).T)

    def readout(self, token: int) -> Float[Tensor, " d_model"]:
        """The gradient of a token's logit, less the mean of all logits, at the last position."""
        return (self.W_U[:, token] - self.W_U.mean(1)) * self.final_scale[-1]

    def _heads(self, layer: int, x: Tensor) -> Tensor:
        values = (self.scales[layer][:, None] * x) @ self._values(layer)
        return self.patterns[layer] @ values.unflatten(-1, (self.n_heads, -1)).movedim(-2, -3)

    def _values(self, layer: int) -> Float[Tensor, "d_model head_d_value"]:
        return self.W_V[layer].transpose(0, 1).flatten(1)


@torch.no_grad()
def freeze(backend: Backend, tokens: Int[Tensor, " pos"]) -> FrozenPass:
    """Run the model on one prompt, hold what is not linear, and see that it adds up again.

    Raises:
        ValueError: If the model cannot be rebuilt so: a layout that is not known, a softcap, a
            `TransformerBridge`.
    """
    layers = tuple(range(backend.n_layers))
    heads = tuple(Head(layer, index) for layer in layers for index in range(backend.n_heads))
    sites = Sites(heads, heads, v=heads, resid=(-1, *layers), mlp_in=layers, mlp_out=layers)
    with (
        probe_mode(backend.model),
        backend.by_itself(),
        backend.capture(replace(sites, logits=True)) as captured,
    ):
        logits = backend.forward(tokens.to(backend.device)[None])
    assert logits is not None
    assert isinstance(backend, HFBackend), "bridges refuse the MLPs' sites"
    weights = head_weights(backend, fold_norm=True)
    unembedding = token_weights(backend, fold_norm=True)
    wide = weights.W_O.dtype
    streams, mlp_out = captured.resid[0].to(wide), captured.mlp_out[0].to(wide)
    patterns, z = (
        values[0].to(wide).unflatten(0, (backend.n_layers, -1))
        for values in (captured.pattern, captured.z)
    )
    written = (z @ weights.W_O).sum(1)
    if weights.b_O is not None:
        written = written + weights.b_O[:, None]
    added = streams[1:] - streams[:-1] - mlp_out
    w_u, b_u = unembedding.W_U.to(wide), unembedding.b_U
    divisor = final_scale(backend, streams[None, -1], logits, w_u, b_u)
    scales_after = _scales_after(written, added)
    frozen = FrozenPass(
        tokens,
        streams[0],
        patterns,
        weights.W_V,
        weights.W_O,
        _scales_before(weights, captured, streams),
        scales_after,
        scales_after[..., None] * _constants(weights, patterns),
        streams,
        captured.mlp_in[0].to(wide),
        mlp_out,
        tuple(mlp.parallel for mlp in backend.mlps),
        w_u,
        w_u.new_zeros(w_u.shape[1]) if b_u is None else b_u.to(wide),
        1 / divisor[0].to(wide),
        logits[0].to(wide),
    )
    _verify(backend, frozen, added)
    return frozen


def _scales_before(
    weights: HeadWeights, captured: Captured, streams: Float[Tensor, "layer_1 pos d_model"]
) -> Float[Tensor, "layer pos"]:
    """One over what the norm before the attention divided by, read off the values."""
    heads = captured.sites.v
    values = torch.stack([captured.vs[head][0] for head in heads]).to(streams)
    values = values.unflatten(0, (len(weights.layers), -1))
    if weights.b_V is not None:
        values = values - weights.b_V[:, :, None]
    raw = streams[:-1, None] @ weights.W_V
    return _ratio(raw.transpose(1, 2).flatten(2), values.transpose(1, 2).flatten(2))


def _scales_after(
    written: Float[Tensor, "layer pos d_model"], added: Float[Tensor, "layer pos d_model"]
) -> Float[Tensor, "layer pos"]:
    """One over what a norm behind the attention divided by; exactly 1 where there is none."""
    slack = 1e-4 * added.abs().max()
    as_it_is = (written - added).flatten(1).abs().amax(1) <= slack
    return torch.where(as_it_is[:, None], 1.0, _ratio(written, added))


def _ratio(
    raw: Float[Tensor, "layer pos d"], scaled: Float[Tensor, "layer pos d"]
) -> Float[Tensor, "layer pos"]:
    """The factor from one to the other that fits best; 0 where there is nothing to scale."""
    size = raw.square().sum(-1)
    return torch.where(size > 0, (raw * scaled).sum(-1) / size.where(size > 0, 1.0), 0.0)


def _constants(
    weights: HeadWeights, patterns: Float[Tensor, "layer head query key"]
) -> Float[Tensor, "layer pos d_model"]:
    layers, _, length, _ = patterns.shape
    total = weights.W_O.new_zeros(layers, length, weights.W_O.shape[-1])
    if weights.b_V is not None:
        per_head = weights.b_V[:, :, None] @ weights.W_O
        total = total + (patterns.sum(-1, keepdim=True) * per_head).sum(1)
    return total if weights.b_O is None else total + weights.b_O[:, None]


def _verify(
    backend: Backend, frozen: FrozenPass, added: Float[Tensor, "layer pos d_model"]
) -> None:
    for layer in range(frozen.n_layers):
        rebuilt = frozen.attend(layer, frozen.streams[layer]) + frozen.head_constants[layer]
        error = (rebuilt - added[layer]).abs().max().item()
        if not error <= 1e-3 * frozen.streams[layer + 1].abs().max().item():
            raise ValueError(
                f"the attention of layer {layer} of {type(backend.model).__name__} is not rebuilt "
                f"from its patterns and weights (largest difference {error:.2g}), so its "
                "contributions cannot be traced; use patching instead"
            )
