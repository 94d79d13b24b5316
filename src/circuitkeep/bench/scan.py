"""The suite ``scan``: what a scan claims to save, on a model of GPT-2 small's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from circuitkeep.bench.ablating import ablating_race
from circuitkeep.bench.gpt2 import CONTEXT, build_subject
from circuitkeep.bench.race import Race
from circuitkeep.bench.scoring import scoring_race
from circuitkeep.bench.suites import RaceSuite
from circuitkeep.circuits import Head
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_context


@dataclass(frozen=True, kw_only=True)
class ScanSuite(RaceSuite):
    """Scoring all heads, and ablating them one by one, on prompts of repeated tokens.

    Attributes:
        prompts: That heads are scored on.
        length: Tokens in each of them, BOS included.
        ablation_prompts: That heads are ablated on.
        ablation_length: Tokens in each of those.
        heads_per_layer: Heads of each layer that are ablated; all if None.
        layers, heads, d_model, vocab: The model's shape.
        seed: Of weights and prompts.

    Raises:
        ValueError: If a number is out of range, naming it.
    """

    prompts: int = 8
    length: int = 32
    ablation_prompts: int = 1
    ablation_length: int = 24
    heads_per_layer: int | None = None
    layers: int = 12
    heads: int = 12
    d_model: int = 768
    vocab: int = 50_257
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length >= CONTEXT:  # detect_head wants a place more
            raise ValueError(f"bench.length must be below {CONTEXT}, got {self.length}")
        if self.heads_per_layer is not None and self.heads_per_layer > self.heads:
            raise ValueError(
                f"bench.heads_per_layer={self.heads_per_layer}: a layer has {self.heads} heads"
            )

    def races(self, device: torch.device) -> list[Race]:
        """See `RaceSuite.races`.

        Raises:
            ValueError: If the prompts are too short for a repeat, or the vocabulary is too small.
        """
        subject = build_subject(
            self.layers, self.heads, self.d_model, self.vocab, self.seed, device
        )
        context = probe_context(subject.backend)
        probe = RepeatedTokens(length=self.length)
        scored = probe.batch(context, "held_out", self.prompts, self.seed)
        probe = RepeatedTokens(length=self.ablation_length)
        ablated = probe.batch(context, "held_out", self.ablation_prompts, self.seed)
        some = self.heads if self.heads_per_layer is None else self.heads_per_layer
        heads = [Head(layer, index) for layer in range(self.layers) for index in range(some)]
        return [scoring_race(subject, scored), ablating_race(subject, ablated, heads)]
