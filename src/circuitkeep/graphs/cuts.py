"""Cutting a head's attention from one query to one key: what is predicted, and what happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Edit, Edits, probe_mode
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.writes import Readout, gradients

Held = Literal["nothing", "patterns", "patterns and MLPs"]
"""What stays as it was in the true model while an edge is cut; norms are always free."""


@dataclass(frozen=True)
class Cut:
    """A head no longer attends from a query to some keys.

    Attributes:
        head: Which.
        query: From where.
        keys: Where to no longer.
        renormalized: Whether its other keys take over what these had, each in proportion;
            otherwise that attention is lost.
    """

    head: Head
    query: int
    keys: tuple[int, ...]
    renormalized: bool = True

    def pattern(
        self, pattern: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query key"]:
        """The head's pattern once cut.

        Raises:
            ValueError: If it attended to nothing else, so that nothing could take over.
        """
        row = pattern[..., self.query, :].clone()
        row[..., list(self.keys)] = 0
        if self.renormalized:
            rest = row.sum(-1, keepdim=True)
            if (rest <= 1e-6).any():
                raise ValueError(
                    f"{self.head} attends from {self.query} to {list(self.keys)} alone: cut it "
                    "with renormalized=False"
                )
            row = row / rest
        changed = pattern.clone()
        changed[..., self.query, :] = row
        return changed


@torch.no_grad()
def predicted_change(backend: Backend, frozen: FrozenPass, readout: Readout, cut: Cut) -> float:
    """What the frozen pass says a cut does to a readout, in its units.

    Later heads attend as before, and MLPs and norms do as before: what they make of the change is
    left out.
    """
    if 2 * cut.head.layer + 1 > readout.time:
        return 0.0
    layer, head = cut.head.layer, cut.head.index
    own = frozen.patterns[layer, head]
    moved = cut.pattern(own)[cut.query] - own[cut.query]
    values = (frozen.scales[layer][:, None] * frozen.streams[layer]) @ frozen.W_V[layer, head]
    b_V = head_weights(backend, [layer], fold_norm=True).b_V
    if b_V is not None:
        values = values + b_V[0, head]
    written = frozen.scales_after[layer, cut.query] * (moved @ values) @ frozen.W_O[layer, head]
    return (written @ gradients(frozen, readout)[2 * layer + 1, cut.query]).item()


@torch.no_grad()
def measured_logits(
    backend: Backend, frozen: FrozenPass, cuts: Sequence[Cut], held: Held = "nothing"
) -> Float[Tensor, "pos vocab"]:
    """The true model's logits once some edges are cut.

    Raises:
        ValueError: If two cuts are of the same head (join their keys).
    """
    if len({cut.head for cut in cuts}) < len(cuts):
        raise ValueError("several cuts of one head: give them as one cut, of several keys")
    pattern: dict[Head, Edit] = {}
    mlp: dict[int, Edit] = {}
    if held != "nothing":
        for layer, heads in enumerate(frozen.patterns):
            pattern |= {Head(layer, index): own for index, own in enumerate(heads)}
    for cut in cuts:
        own = pattern.get(cut.head)
        pattern[cut.head] = cut.pattern(own) if isinstance(own, Tensor) else cut.pattern
    if held == "patterns and MLPs":
        mlp = dict(enumerate(frozen.mlp_out))
    with probe_mode(backend.model), backend.edit(Edits(pattern=pattern, mlp=mlp)):
        logits = backend.forward(frozen.tokens[None])
    assert logits is not None
    return logits[0].to(frozen.logits)
