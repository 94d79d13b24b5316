"""From a prompt to its attribution graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.causal.one_by_one import Progress, counting, no_progress
from circuitkeep.graphs.frozen import FrozenPass, freeze
from circuitkeep.graphs.graph import Graph, Node
from circuitkeep.graphs.sources import Rows, Sources, find_sources
from circuitkeep.transcoders import CrossLayerTranscoder

MOST_LOGITS = 10
BATCH = 256


@torch.no_grad()
def trace(
    backend: Backend,
    tokens: Sequence[int],
    transcoder: CrossLayerTranscoder | None = None,
    *,
    logits: Sequence[int] | None = None,
    share: float = 0.95,
    max_features: int | None = None,
    text: Callable[[int], str] = str,
    batch: int = BATCH,
    progress: Progress = no_progress,
) -> Graph:
    """Trace what a model says after a prompt back to its tokens.

    Attention patterns and norm denominators are held at the prompt's own, so that what a source
    adds to a target is exact; what that leaves out is what `circuitkeep.graphs.faithfulness`
    measures.

    Args:
        backend: A Hugging Face model.
        tokens: Of the prompt.
        transcoder: What its MLPs are read as; without one, all that they add is error.
        logits: Tokens whose logits are traced; if None the likeliest, as many as it takes for
            `share` of the probability, but at most 10.
        share: See there.
        max_features: Keep this many features as nodes, those with the most influence; what the
            others write is counted as error. It takes two rounds.
        text: What a token reads as.
        batch: Targets that are traced at once; a pass backwards holds that many times the
            prompt's residual stream.
        progress: Told how many targets are traced, and of how many.

    Raises:
        ValueError: If the prompt is empty or longer than the context, a token or a choice is out
            of range, the transcoder is of another model, or the model cannot be held still (see
            `circuitkeep.graphs.frozen.freeze`).
    """
    _check(backend, tokens, share, max_features, batch)
    frozen = freeze(backend, torch.tensor(list(tokens), device=backend.device))
    sources = find_sources(frozen, transcoder)
    chosen = _likeliest(frozen, share) if logits is None else _given(frozen, logits)
    probabilities = frozen.logits[-1].softmax(-1)[chosen]
    if transcoder is not None and max_features is not None and max_features < len(sources):
        kept = _most_influential(sources, chosen, probabilities, max_features, batch, progress)
        sources = sources.only(kept, transcoder)
    return _graph(sources, chosen, probabilities, text, batch, progress)


def _check(
    backend: Backend, tokens: Sequence[int], share: float, most: int | None, batch: int
) -> None:
    if not 1 <= len(tokens) <= backend.context_length:
        raise ValueError(
            f"a prompt of {len(tokens)} tokens: give 1 to {backend.context_length}, the model's "
            "context"
        )
    outside = [token for token in tokens if not 0 <= token < backend.vocab_size]
    if outside:
        raise ValueError(
            f"token {outside[0]} is outside the model's vocabulary of {backend.vocab_size}; is "
            "the tokenizer another model's?"
        )
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a share of the probability, above 0 and up to 1")
    for name, value in (("max_features", most), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: give at least 1")


def _likeliest(frozen: FrozenPass, share: float) -> Int[Tensor, " logit"]:
    ordered = frozen.logits[-1].softmax(-1).sort(descending=True, stable=True)
    enough = int((ordered.values.cumsum(0) < share).sum()) + 1
    return ordered.indices[: min(enough, MOST_LOGITS)]


def _given(frozen: FrozenPass, logits: Sequence[int]) -> Int[Tensor, " logit"]:
    vocabulary = frozen.logits.shape[1]
    wrong = [token for token in logits if not 0 <= token < vocabulary]
    if wrong or not logits or len(set(logits)) < len(logits):
        raise ValueError(f"logits={list(logits)}: give different tokens from 0 to {vocabulary - 1}")
    chosen = torch.tensor(list(logits), device=frozen.logits.device)
    return chosen[frozen.logits[-1, chosen].argsort(descending=True, stable=True)]


def _logit_rows(sources: Sources, chosen: Int[Tensor, " logit"]) -> Rows:
    frozen = sources.frozen
    last = torch.full_like(chosen, len(frozen.tokens) - 1)
    readers = torch.stack([frozen.readout(token) for token in chosen.tolist()])
    return sources.rows(frozen.n_layers, last, readers)


def _feature_rows(sources: Sources, wanted: Int[Tensor, " target"]) -> Rows:
    """Of features of one layer."""
    active = sources.active
    rows = sources.rows(int(active.layer[wanted[0]]), active.pos[wanted], active.readers[wanted])
    return Rows(rows.features, rows.errors, rows.embeddings, rows.biases + active.biases[wanted])


def _by_layer(
    sources: Sources, wanted: Int[Tensor, " target"], batch: int
) -> list[Int[Tensor, "_part"]]:
    layers = sources.active.layer[wanted]
    return [
        part
        for layer in range(sources.frozen.n_layers)
        for part in wanted[layers == layer].split(batch)
        if len(part)
    ]


def _most_influential(
    sources: Sources,
    chosen: Int[Tensor, " logit"],
    probabilities: Float[Tensor, " logit"],
    most: int,
    batch: int,
    progress: Progress,
) -> Bool[Tensor, " feature"]:
    """Trace the most influential features first, by what is known so far, until there are enough.

    Source:
        As in https://github.com/decoderesearch/circuit-tracer.
    """
    tell = counting(progress, most)
    # A row for each logit and each feature that has been traced, in `order`: of what flows in, the
    # share of every feature. No more is held, however many features are active.
    shares = probabilities.new_zeros(len(chosen) + most, len(sources))
    shares[: len(chosen)] = _feature_shares(_logit_rows(sources, chosen))
    order = chosen.new_zeros(0)
    kept = torch.zeros(len(sources), dtype=torch.bool, device=shares.device)
    while len(order) < most:
        scores = _reaching(shares[: len(chosen) + len(order)], order, probabilities)
        best = scores.masked_fill(kept, -1).topk(min(batch, most - len(order))).indices
        kept[best] = True
        for part in _by_layer(sources, best, batch):
            start = len(chosen) + len(order)
            shares[start : start + len(part)] = _feature_shares(_feature_rows(sources, part))
            order = torch.cat([order, part])
        tell(len(best))
    return kept


def _feature_shares(rows: Rows) -> Float[Tensor, "target feature"]:
    others = rows.errors.abs().sum((1, 2)) + rows.embeddings.abs().sum(1)
    size = rows.features.abs()
    return size / (size.sum(1) + others).clamp(min=1e-10)[:, None]


def _reaching(
    shares: Float[Tensor, "row feature"],
    order: Int[Tensor, " traced"],
    probabilities: Float[Tensor, " logit"],
) -> Float[Tensor, " feature"]:
    """The influence of every feature, as far as paths run through features that were traced."""
    nothing = torch.zeros_like(probabilities)
    total = shares.new_zeros(shares.shape[1])
    current = torch.cat([probabilities, shares.new_zeros(len(order))])
    while current.any():
        flow = current @ shares
        total = total + flow
        current = torch.cat([nothing, flow[order]])
    return total


def _graph(
    sources: Sources,
    chosen: Int[Tensor, " logit"],
    probabilities: Float[Tensor, " logit"],
    text: Callable[[int], str],
    batch: int,
    progress: Progress,
) -> Graph:
    frozen, active = sources.frozen, sources.active
    length, layers = len(frozen.tokens), frozen.n_layers
    # Where nodes are: embeddings, then every layer's features and errors, then the logits.
    before = torch.bincount(active.layer, minlength=layers).cumsum(0).cpu()
    own = torch.arange(len(sources)) + length * (1 + active.layer.cpu())
    errors = (length * (1 + torch.arange(layers)) + before)[:, None] + torch.arange(length)
    logits = length * (1 + layers) + len(sources) + torch.arange(len(chosen))
    size = int(logits[-1]) + 1
    kind = frozen.embedding.dtype
    edges = torch.zeros(size, size, dtype=kind)
    values, activations, biases, likely = torch.zeros(4, size, dtype=kind)

    def fill(targets: Tensor, rows: Rows) -> None:
        edges[targets[:, None], own] = rows.features.cpu().to(edges)
        edges[targets[:, None], errors.flatten()] = rows.errors.flatten(1).cpu().to(edges)
        edges[targets, :length] = rows.embeddings.cpu().to(edges)
        biases[targets] = rows.biases.cpu().to(edges)

    tell = counting(progress, len(sources) + len(chosen))
    for part in _by_layer(sources, torch.arange(len(sources), device=active.layer.device), batch):
        fill(own[part.cpu()], _feature_rows(sources, part))
        tell(len(part))
    rows = _logit_rows(sources, chosen)
    unembedded = frozen.b_U[chosen] - frozen.b_U.mean()
    fill(logits, Rows(rows.features, rows.errors, rows.embeddings, rows.biases + unembedded))
    tell(len(chosen))
    last = frozen.logits[-1]
    values[own] = active.activations.cpu().to(edges)
    activations[own] = values[own]
    values[logits] = (last[chosen] - last.mean()).cpu().to(edges)
    likely[logits] = probabilities.cpu().to(edges)
    numbers = frozen.tokens.tolist()
    return Graph(
        tokens=tuple(numbers),
        words=tuple(text(token) for token in numbers),
        logit_words=tuple(text(token) for token in chosen.tolist()),
        nodes=_nodes(sources, chosen),
        values=values,
        activations=activations,
        edges=edges,
        biases=biases,
        probabilities=likely,
        n_layers=layers,
    )


def _nodes(sources: Sources, chosen: Int[Tensor, " logit"]) -> tuple[Node, ...]:
    numbers = sources.frozen.tokens.tolist()
    layers = sources.frozen.n_layers
    nodes = [Node("embedding", -1, pos, token) for pos, token in enumerate(numbers)]
    found = list(zip(*(part.tolist() for part in sources.active[:3]), strict=True))
    for layer in range(layers):
        nodes += [Node("feature", *place) for place in found if place[0] == layer]
        nodes += [Node("error", layer, pos, 0) for pos in range(len(numbers))]
    nodes += [Node("logit", layers, len(numbers) - 1, token) for token in chosen.tolist()]
    return tuple(nodes)
