"""What influences the answers of a probe's prompts, in one model and in another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.heads import head_graph
from circuitkeep.graphs.influence import influence
from circuitkeep.graphs.trace import trace
from circuitkeep.graphs.writes import logit_readout
from circuitkeep.probes import ProbeBatch
from circuitkeep.transcoders import CrossLayerTranscoder

Influences = Mapping[tuple[Any, ...], float]
"""A part of an answer's graph -> its share of the influence."""


@torch.no_grad()
def answer_influences(
    backend: Backend,
    batch: ProbeBatch,
    most: int,
    transcoder: CrossLayerTranscoder | None = None,
) -> tuple[Influences | None, ...]:
    """What influences the first answer of each prompt.

    Args:
        backend: A Hugging Face model.
        batch: The prompts.
        most: How many of them are traced: the first that have an answer.
        transcoder: Its features are the parts; without one it is what heads carry, from key to
            query.

    Returns:
        By prompt; None for those that are not traced.

    Raises:
        ValueError: If the transcoder is of another model, or the model cannot be traced.
    """
    first = {int(row): place for place, row in reversed(list(enumerate(batch.answer_row)))}
    found: list[Influences | None] = [None] * len(batch)
    for row in sorted(first)[:most]:
        position, answer = (
            int(values[first[row]]) for values in (batch.answer_position, batch.answer)
        )
        tokens = batch.tokens[row, : position + 1]
        if transcoder is None:
            found[row] = _of_heads(backend, tokens, answer)
        else:
            found[row] = _of_features(backend, tokens, answer, transcoder)
    return tuple(found)


def overlaps(
    now: Sequence[Influences | None], base: Sequence[Influences | None]
) -> Float[Tensor, " row"]:
    r"""How much of the influence each prompt's graphs share.

    .. math:: \sum_n \min(a_n, b_n) / \sum_n \max(a_n, b_n)

    Returns:
        From 0 to 1 in double precision; NaN for prompts that were not traced.
    """
    found = []
    for mine, its in zip(now, base, strict=True):
        if mine is None or its is None:
            found.append(math.nan)
            continue
        least = sum(min(share, its.get(part, 0.0)) for part, share in mine.items())
        most = sum(mine.values()) + sum(its.values()) - least
        found.append(least / most if most > 0 else math.nan)
    return torch.tensor(found, dtype=torch.double)


def _of_features(
    backend: Backend, tokens: Tensor, answer: int, transcoder: CrossLayerTranscoder
) -> Influences:
    graph = trace(backend, tokens.tolist(), transcoder, logits=[answer])
    shares = influence(graph) * graph.of_kind("feature")
    shares = shares / shares.sum().clamp(min=1e-30)
    pairs = zip(graph.nodes, shares.tolist(), strict=True)
    return {(node.layer, node.pos, node.index): share for node, share in pairs if share > 0}


def _of_heads(backend: Backend, tokens: Tensor, answer: int) -> Influences:
    frozen = freeze(backend, tokens)
    graph = head_graph(frozen, logit_readout(frozen, answer))
    _, edges = graph.influences()
    keys = torch.tensor([writer.pos for writer in graph.writers], device=edges.device)
    by_key = edges.new_zeros(len(edges), len(tokens)).index_add_(1, keys, edges)
    by_key = (by_key / by_key.sum().clamp(min=1e-30)).cpu()
    heads = [graph.writers[place] for place in graph.heads.tolist()]
    return {
        (heads[row].layer, heads[row].index, heads[row].pos, key): by_key[row, key].item()
        for row, key in by_key.nonzero().tolist()
    }
