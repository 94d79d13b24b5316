"""What makes a feature readable: where it is active, and which tokens it promotes."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.capture.weights import TokenWeights
from circuitkeep.transcoders import CrossLayerTranscoder

Feature = tuple[int, int]
"""Layer, and number in it."""
BEFORE, AFTER = 16, 4
"""Tokens of a context on either side of where the feature is most active."""


@dataclass(frozen=True)
class Context:
    """A stretch of text, and how active a feature is at each of its tokens."""

    tokens: tuple[int, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class LogitEffects:
    """Tokens whose logits a feature raises and lowers most, per unit of activation.

    Strongest first; a logit less the mean of all logits. What later layers make of what the
    feature writes is left out, and so is the final norm's division.
    """

    promoted: tuple[tuple[int, float], ...]
    suppressed: tuple[tuple[int, float], ...]


@torch.no_grad()
def top_contexts(
    transcoder: CrossLayerTranscoder,
    backend: Backend,
    rows: Int[Tensor, "row pos"],
    features: Sequence[Feature],
    n: int = 5,
    counts: Bool[Tensor, "row pos"] | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Feature, tuple[Context, ...]]:
    """The stretches of text in which features are most active, at most one of a row.

    Args:
        transcoder: Of the model.
        backend: The model.
        rows: Texts as tokens.
        features: Which.
        n: Contexts of each, at most; a feature that is active in fewer rows has fewer.
        counts: Positions that are looked at; if None all but the first, where what a model does is
            often far out of its usual range and tells nothing about text.
        batch: Rows of a pass.
        progress: Told how many rows are done, of how many.

    Returns:
        Per feature, the most active context first.
    """
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, index in dict.fromkeys(features):
        by_layer[layer].append(index)
    best: dict[Feature, list[tuple[float, int, Context]]] = {each: [] for each in features}
    if counts is None:
        counts = torch.arange(rows.shape[1]).expand(rows.shape) > 0
    for start in range(0, len(rows), batch):
        sites = Sites(mlp_in=tuple(sorted(by_layer)))
        with probe_mode(backend.model), backend.capture(sites) as captured:
            backend.forward(rows[start : start + batch].to(backend.device))
        looked_at = counts[start : start + batch, :, None]
        for layer, indices in by_layer.items():
            stream = captured.mlp_ins[layer].to(transcoder.W_enc)
            active = transcoder.encode_layer(layer, stream)[..., indices].cpu()
            peaks, places = (active * looked_at).max(1)
            for row, column in (peaks > 0).nonzero().tolist():
                found = best[layer, indices[column]]
                peak = peaks[row, column].item()
                if len(found) < n or peak > found[0][0]:
                    place = places[row, column].item()
                    near = slice(max(0, place - BEFORE), place + AFTER + 1)
                    context = Context(
                        tuple(rows[start + row, near].tolist()),
                        tuple(active[row, near, column].tolist()),
                    )
                    entry = (peak, -(start + row), context)
                    (heapq.heappush if len(found) < n else heapq.heapreplace)(found, entry)
        progress(min(start + batch, len(rows)), len(rows))
    return {
        feature: tuple(context for *_, context in sorted(found, key=lambda one: one[:2])[::-1])
        for feature, found in best.items()
    }


@torch.no_grad()
def logit_effects(
    transcoder: CrossLayerTranscoder,
    token_weights: TokenWeights,
    features: Sequence[Feature],
    n: int = 8,
) -> dict[Feature, LogitEffects]:
    """Which tokens features promote and suppress by what they write, at all layers together.

    Args:
        transcoder: Of the model.
        token_weights: Of the model, with the final norm folded in.
        features: Which.
        n: Tokens on either side.
    """
    effects = {}
    for layer, index in dict.fromkeys(features):
        written = transcoder.W_dec[layer][index].sum(0)
        logits = written.to(token_weights.W_U) @ token_weights.W_U
        logits = (logits - logits.mean()).float().cpu()
        order = logits.argsort(descending=True).tolist()
        most = min(n, len(order))
        effects[layer, index] = LogitEffects(
            tuple((token, logits[token].item()) for token in order[:most]),
            tuple((token, logits[token].item()) for token in order[: -most - 1 : -1]),
        )
    return effects
