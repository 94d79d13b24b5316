"""A penalty that `study_specificity.py` tries, and that is not in the library: what heads read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, attach, probe_mode
from circuitkeep.capture.models import load_model_and_tokenizer
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import load_circuit
from circuitkeep.probing import probe_rows
from circuitkeep.tasks import CausalLM

ROWS = 8
"""Probe rows per step."""


class ReadingLM(CausalLM):
    r"""Next-token training, and the relative change of what some heads of the base model read.

    .. math:: \frac{\sum_p \lVert (x_p - x^{ref}_p) M \rVert^2}{\sum_p \lVert x^{ref}_p M \rVert^2}

    averaged over rows, heads and the three maps :math:`M` of each head, :math:`W_Q W_K^\top`,
    :math:`W_K W_Q^\top` and :math:`W_V W_O` of the base. So every direction counts by how strongly
    the head reads it. :math:`x` is the residual stream before the head's layer, after the base's
    norm, at position :math:`p` of a train probe row.

    Args:
        model: In training.
        base: Directory of the base model.
        held: File of the circuit whose heads' reading is held.
        seed: Of the probe rows and their order.
        settings: See `CausalLM`.
    """

    def __init__(self, model: Any, base: str, held: str, seed: int, **settings: Any) -> None:
        super().__init__(model, **settings)
        frozen, tokenizer = load_model_and_tokenizer(base)
        frozen.requires_grad_(False)
        before = attach(frozen)
        circuit = load_circuit(Path(held))
        self._rows = probe_rows(circuit, before, tokenizer, "train", 256, seed)
        self._seed = seed
        weights = head_weights(before)
        # By layer: the norm before it, and the maps of its heads.
        self._reads: dict[int, tuple[Any, Float[Tensor, "map d_model d_model"]]] = {}
        for layer in sorted({head.layer for head in circuit.heads}):
            maps = []
            for head in (head for head in circuit.heads if head.layer == layer):
                matrices = (weights.W_Q, weights.W_K, weights.W_V, weights.W_O)
                query, key, value, out = (w[layer, head.index].detach() for w in matrices)
                maps += [query @ key.T, key @ query.T, value @ out]
            self._reads[layer] = frozen.model.layers[layer].input_layernorm, torch.stack(maps)
        # In a tuple, so that the base does not become part of this module.
        self._backends = (before, attach(model))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """The task's loss and the change."""
        loss = super().training_step(batch, batch_idx)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.global_step)
        chosen = torch.randperm(len(self._rows), generator=generator)[:ROWS]
        return loss + self._change(self._rows.tokens[chosen], self._rows.mask[chosen])

    def _change(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, ""]:
        before, after = self._backends
        with torch.no_grad():
            reference = self._streams(before, tokens)
        now = self._streams(after, tokens)
        changes = []
        for layer, (norm, maps) in self._reads.items():
            read, moved = norm(reference[layer - 1]), norm(now[layer - 1])
            sizes = [
                torch.einsum("bpd,mde->bmpe", x, maps).square().sum(-1).mul(mask[:, None]).sum(-1)
                for x in (moved - read, read)
            ]
            changes.append((sizes[0] / sizes[1]).mean(0))
        return torch.cat(changes).mean()

    def _streams(
        self, backend: Backend, tokens: Int[Tensor, "batch pos"]
    ) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        sites = Sites(resid=tuple(layer - 1 for layer in self._reads))
        with probe_mode(backend.model), backend.capture(sites) as captured:
            backend.forward(tokens)
        return captured.resids
