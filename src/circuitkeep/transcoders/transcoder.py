"""Cross-layer transcoders: sparse features that stand for a model's MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = ("jumprelu", "relu", "topk", "batchtopk")
READS = ("stream", "normalized")


@dataclass(frozen=True)
class TranscoderConfig:
    """The shape of a transcoder.

    Attributes:
        n_layers: Of the model.
        d_model: Width of its residual stream.
        n_features: Per layer.
        activation: ``jumprelu``, ``relu``, ``topk`` or ``batchtopk``.
        k: Active features per layer and token, for the last two; null for the others.
        cross_layer: Whether a feature writes to the MLP outputs of its own and all later layers;
            otherwise to its own layer's only (a transcoder per layer).
        reads: ``stream``: the residual stream before the MLP's norm; ``normalized``: the same,
            divided by its root mean square.
    """

    n_layers: int
    d_model: int
    n_features: int
    activation: str = "jumprelu"
    k: int | None = None
    cross_layer: bool = True
    reads: str = "stream"

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a transcoder needs at least one")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={self.activation!r}: choose from {', '.join(ACTIVATIONS)}"
            )
        if self.reads not in READS:
            raise ValueError(f"reads={self.reads!r}: choose from {', '.join(READS)}")
        if ("topk" in self.activation) != (self.k is not None):
            raise ValueError(
                f"activation={self.activation!r} with k={self.k}: topk and batchtopk need k, the "
                "number of active features; the others take none"
            )
        if self.k is not None and not 1 <= self.k <= self.n_features:
            raise ValueError(f"k={self.k}: choose 1 to n_features={self.n_features}")

    def written(self, layer: int) -> range:
        """The layers whose MLP outputs the features of `layer` write to."""
        return range(layer, self.n_layers if self.cross_layer else layer + 1)


class CrossLayerTranscoder(nn.Module):
    r"""Features read the residual stream at one layer and write to MLP outputs from there on.

    .. math:: a_l = \sigma(W^{enc}_l x_l + b^{enc}_l), \qquad
        \hat y_m = \sum_{l \le m} W^{dec\top}_{l \to m} a_l + b^{dec}_m

    All in the model's own units. A new one has encoders of unit length at random and decoders of
    zero.

    Attributes:
        config: Its shape.
        W_enc: What features read.
        b_enc: Added to it.
        W_dec: Per layer, what its features write to the layers of `TranscoderConfig.written`.
        b_dec: Written whatever is active.
        threshold: What a pre-activation must exceed to count; it then counts whole. 0 or more.

    Source:
        Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models",
        https://transformer-circuits.pub/2025/attribution-graphs/methods.html.
    """

    W_enc: Float[Tensor, "layer feature d_model"]
    b_enc: Float[Tensor, "layer feature"]
    b_dec: Float[Tensor, "layer d_model"]
    threshold: Float[Tensor, "layer feature"]

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__()
        self.config = config
        layers, features, width = config.n_layers, config.n_features, config.d_model
        encoders = nn.functional.normalize(torch.randn(layers, features, width), dim=-1)
        self.W_enc = nn.Parameter(encoders)
        self.b_enc = nn.Parameter(torch.zeros(layers, features))
        self.W_dec = nn.ParameterList(
            torch.zeros(features, len(config.written(layer)), width) for layer in range(layers)
        )
        self.b_dec = nn.Parameter(torch.zeros(layers, width))
        self.threshold = nn.Parameter(torch.zeros(layers, features))

    def input_scale(
        self, stream: Float[Tensor, "layer *rest d_model"]
    ) -> Float[Tensor, "layer *rest"]:
        """What each position of the stream is multiplied by before it is read."""
        if self.config.reads == "stream":
            return torch.ones_like(stream[..., 0])
        return stream.square().mean(-1).add(1e-6).rsqrt()

    def pre_activations(
        self, stream: Float[Tensor, "layer *rest d_model"]
    ) -> Float[Tensor, "layer *rest feature"]:
        """Of every feature, before the nonlinearity."""
        return torch.stack([self._pre(layer, own) for layer, own in enumerate(stream)])

    def activate(
        self, pre: Float[Tensor, "layer *rest feature"]
    ) -> Float[Tensor, "layer *rest feature"]:
        """The nonlinearity, as it is once training is over."""
        return torch.stack([self.activate_layer(layer, own) for layer, own in enumerate(pre)])

    def encode(
        self, stream: Float[Tensor, "layer *rest d_model"]
    ) -> Float[Tensor, "layer *rest feature"]:
        """Activations of every feature.

        Args:
            stream: What each layer's MLP reads, before its norm.
        """
        return self.activate(self.pre_activations(stream))

    def encode_layer(
        self, layer: int, stream: Float[Tensor, "*rest d_model"]
    ) -> Float[Tensor, "*rest feature"]:
        """Activations of one layer's features."""
        return self.activate_layer(layer, self._pre(layer, stream))

    def decode(
        self, activations: Float[Tensor, "layer *rest feature"]
    ) -> Float[Tensor, "layer *rest d_model"]:
        """What stands for each layer's MLP output."""
        shape = activations.shape[1:-1]
        out = [bias.expand(*shape, -1) for bias in self.b_dec]
        for layer, decoders in enumerate(self.W_dec):
            # One product for all layers: slices of the decoders would cost as much as the products.
            written = (activations[layer] @ decoders.flatten(1)).unflatten(-1, decoders.shape[1:])
            for place, target in enumerate(self.config.written(layer)):
                out[target] = out[target] + written[..., place, :]
        return torch.stack(out)

    def decode_layer(
        self, target: int, activations: Sequence[Float[Tensor, "*rest feature"]]
    ) -> Float[Tensor, "*rest d_model"]:
        """What stands for one layer's MLP output.

        Args:
            target: The layer.
            activations: Those of all layers up to it.
        """
        out = self.b_dec[target].expand(*activations[target].shape[:-1], -1)
        for layer, decoders in enumerate(self.W_dec):
            if target in self.config.written(layer):
                out = out + activations[layer] @ decoders[:, target - layer]
        return out

    def forward(
        self, stream: Float[Tensor, "layer *rest d_model"]
    ) -> Float[Tensor, "layer *rest d_model"]:
        """What stands for the MLP outputs of a model whose MLPs read `stream`."""
        return self.decode(self.encode(stream))

    def _pre(self, layer: int, stream: Tensor) -> Tensor:
        read = stream * self.input_scale(stream[None])[0][..., None]
        return read @ self.W_enc[layer].T + self.b_enc[layer]

    def activate_layer(
        self, layer: int, pre: Float[Tensor, "*rest feature"]
    ) -> Float[Tensor, "*rest feature"]:
        """The nonlinearity of one layer."""
        active = pre > self.threshold[layer].clamp(min=0)
        if self.config.activation == "topk":
            assert self.config.k is not None
            least = pre.topk(self.config.k, dim=-1).values[..., -1:]
            active = active & (pre >= least)
        return pre * active
