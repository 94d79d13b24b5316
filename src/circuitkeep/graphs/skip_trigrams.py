"""Bigrams and skip-trigrams: what a model says by tokens alone, through no head and through one.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
https://transformer-circuits.pub/2021/framework/index.html.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.capture.weights import TokenWeights, head_weights, token_weights
from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.scores import HeadScores


@dataclass(frozen=True)
class Bigram:
    """By how much a token raises the logit of the next one directly."""

    token: int
    out: int
    logit: float


@dataclass(frozen=True)
class SkipTrigram:
    """``source ... destination -> out``: what a head makes of two tokens.

    Attributes:
        source: The token that is attended to.
        destination: The token that attends.
        out: The token whose logit changes.
        attention: What the destination would pay to the source if every token in question stood
            once among its keys, all at this distance.
        logit: What the head then writes for `out`: `attention` times what it writes of the source.
    """

    source: int
    destination: int
    out: int
    attention: float
    logit: float


@torch.no_grad()
def bigrams(
    backend: Backend, count: int = 20, tokens: Int[Tensor, " token"] | None = None
) -> list[Bigram]:
    r"""The largest entries of :math:`W_E W_U`: the direct path from a token to the next.

    In logits less the mean of all, before the final norm's division. Learned positions are left
    out.

    Args:
        backend: The model.
        count: Entries.
        tokens: Tokens that may come first; all if None.
    """
    weights = token_weights(backend, fold_norm=True)
    chosen = _chosen(weights, tokens)
    table = weights.W_E[chosen].to(weights.W_U) @ _centred(weights)
    best = table.flatten().topk(min(count, table.numel())).indices.tolist()
    places = [divmod(place, table.shape[1]) for place in best]
    return [Bigram(int(chosen[row]), out, table[row, out].item()) for row, out in places]


@torch.no_grad()
def skip_trigrams(
    backend: Backend,
    head: Head,
    offset: int = 1,
    count: int = 20,
    tokens: Int[Tensor, " token"] | None = None,
) -> list[SkipTrigram]:
    """What a head of the first layer raises most, by tokens alone.

    Queries, keys and values are those of each token standing alone at the start of a prompt, so
    that norms and biases are the model's own; queries are then turned by the offset in models that
    turn them, and learned positions are all the first. Logits are less the mean of all, before the
    final norm's division, and without the bias of the values.

    Args:
        backend: The model (a Hugging Face model).
        head: Of layer 0, which reads embeddings and nothing else.
        offset: How far before the destination the source stands.
        count: Triples.
        tokens: Tokens that may be source or destination; all if None. The table of scores has the
            square of their number.

    Raises:
        ValueError: If the head is not of layer 0, there are fewer than two tokens, or scores are
            not rebuilt (see `circuitkeep.graphs.scores`).
    """
    if head.layer:
        raise ValueError(f"{head} reads what layers below wrote: choose a head of layer 0")
    weights, own = token_weights(backend, fold_norm=True), head_weights(backend, [0])
    chosen = _chosen(weights, tokens)
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} token: a head chooses between two or more")
    sites = Sites(q=(head,), k=(head,), v=(head,))
    with probe_mode(backend.model), backend.capture(sites) as captured:
        backend.forward(chosen[:, None])
    queries, keys, values = (
        found[head][:, 0].to(weights.W_U) for found in (captured.qs, captured.ks, captured.vs)
    )
    some = chosen[: min(len(chosen), backend.context_length, 8)]
    scores = HeadScores(backend, freeze(backend, some), head)
    turned = queries @ scores.turn(offset).to(queries)
    attention = (scores.scale * turned @ keys.T).softmax(1)
    if own.b_V is not None:
        values = values - own.b_V[0, head.index]
    logits = values @ own.W_O[0, head.index].to(values) @ _centred(weights)
    return _triples(chosen, attention, logits, count)


def _triples(
    chosen: Int[Tensor, " token"],
    attention: Float[Tensor, "destination source"],
    logits: Float[Tensor, "source out"],
    count: int,
) -> list[SkipTrigram]:
    # Of each source the best destinations and the best outs hold its best products.
    paid, destinations = attention.T.topk(min(count, len(chosen)), dim=1)
    raised, outs = logits.topk(min(count, logits.shape[1]), dim=1)
    products = paid[:, :, None] * raised[:, None]
    best = products.flatten().topk(min(count, products.numel())).indices
    places = torch.stack(torch.unravel_index(best, products.shape), 1).tolist()
    return [
        SkipTrigram(
            int(chosen[source]),
            int(chosen[destinations[source, i]]),
            int(outs[source, j]),
            paid[source, i].item(),
            products[source, i, j].item(),
        )
        for source, i, j in places
    ]


def _chosen(weights: TokenWeights, tokens: Int[Tensor, " token"] | None) -> Int[Tensor, " token"]:
    every = torch.arange(len(weights.W_E), device=weights.W_E.device)
    return every if tokens is None else tokens.to(every)


def _centred(weights: TokenWeights) -> Float[Tensor, "d_model vocab"]:
    return weights.W_U - weights.W_U.mean(1, keepdim=True)
