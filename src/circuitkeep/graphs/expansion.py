r"""A logit as a sum over the number of heads passed.

With patterns and norms held a stream is :math:`\prod_l (1 + A_l)` applied to what is written, where
:math:`A_l` is all heads of a layer. Multiplied out, what passes no head is the direct path (the
bigram, for embeddings); what passes one are skip-trigrams; what passes two or more is composition.
In attention-only models that is all of the logit; in others what MLPs write are sources of their
own, named so.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
https://transformer-circuits.pub/2021/framework/index.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.writes import Readout

SOURCES = ("tokens", "MLPs", "biases")


@dataclass(frozen=True, eq=False)
class Expansion:
    """A readout by source and number of heads passed; or the mean of several.

    Attributes:
        parts: What comes from embeddings (positions included), MLP outputs and biases.
        value: The readout: their sum.
    """

    parts: Float[Tensor, "source passed"]
    value: float

    @property
    def shares(self) -> Float[Tensor, "source passed"]:
        """Parts over the whole; a part against the readout is negative, and one can exceed 1."""
        return self.parts / self.value

    def lines(self) -> list[tuple[str, int, float, float]]:
        """Source, heads passed, part and share; nothing that is exactly 0."""
        return [
            (SOURCES[source], passed, part, part / self.value)
            for source, row in enumerate(self.parts.tolist())
            for passed, part in enumerate(row)
            if part
        ]


@torch.no_grad()
def expand(frozen: FrozenPass, readout: Readout) -> Expansion:
    """Take a readout apart by the number of heads passed; see `logit_readout`."""
    layers = range((readout.time + 1) // 2)
    parts = frozen.embedding.new_zeros(len(SOURCES), len(layers) + 1, *frozen.embedding.shape)
    tokens, mlps, biases = range(len(SOURCES))
    parts[tokens, 0] = frozen.embedding
    for layer in layers:
        if layer:
            parts[mlps, 0] += frozen.mlp_out[layer - 1]
        moved = frozen.attend(layer, parts)
        parts[:, 1:] += moved[:, :-1]
        parts[biases, 0] += frozen.head_constants[layer]
    # An MLP of the last layer that was passed has written if the readout comes after it.
    if readout.time == 2 * len(layers) and len(layers):
        parts[mlps, 0] += frozen.mlp_out[len(layers) - 1]
    amounts = parts[..., readout.pos, :] @ readout.direction
    amounts[biases, 0] += readout.bias
    return Expansion(amounts, readout.value)


def mean_expansion(expansions: Sequence[Expansion]) -> Expansion:
    """Of several prompts, part by part; its shares are those of the mean readout.

    Raises:
        ValueError: If there is none.
    """
    if not expansions:
        raise ValueError("no expansion to average")
    parts = torch.stack([expansion.parts for expansion in expansions]).mean(0)
    return Expansion(parts, sum(e.value for e in expansions) / len(expansions))
