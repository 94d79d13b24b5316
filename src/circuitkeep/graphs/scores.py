r"""Why a head attends where it does: its score, pair by pair of what the stream is made of.

Before the softmax a score is :math:`\beta \, s_q s_k \, x_q W_Q R_{q-k} W_K^\top x_k` and biases,
with :math:`s` one over the denominators of the norms, held, :math:`R` the rotation and
:math:`\beta` the softmax's scale. Both streams are sums of what was written, so the score is a sum
over pairs of a writer on the query's side and one on the key's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.capture.layouts import rotation
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.writes import Writer, Writes, pulled, stream_writes
from circuitkeep.transcoders import CrossLayerTranscoder


@dataclass(frozen=True, eq=False)
class ScoreAttribution:
    """One score of a head, in parts.

    Attributes:
        head: Which.
        query: From where it attends.
        key: Where to.
        contrast: Whether the mean score of all other keys is taken off, which decides how much
            more it attends to this one.
        query_writers: Writers on the query's side; the last are the biases of its queries.
        key_writers: On the key's side; the last are the biases of its keys.
        matrix: What each pair adds to the score, scaled as for the softmax; natural logarithms
            of odds.
        score: Their sum.
        attention: What the head pays to this key.
    """

    head: Head
    query: int
    key: int
    contrast: bool
    query_writers: tuple[Writer, ...]
    key_writers: tuple[Writer, ...]
    matrix: Float[Tensor, "query_writer key_writer"]
    score: float
    attention: float

    @property
    def by_query(self) -> dict[Writer, float]:
        """What each writer on the query's side adds, with all of the key; largest first."""
        return _ranked(self.query_writers, self.matrix.sum(1))

    @property
    def by_key(self) -> dict[Writer, float]:
        """What each writer on the key's side adds, with all of the query; largest first."""
        return _ranked(self.key_writers, self.matrix.sum(0))

    def strongest(self, count: int = 10) -> list[tuple[Writer, Writer, float]]:
        """The pairs that add or take most, by size."""
        flat = self.matrix.flatten()
        order = flat.abs().argsort(descending=True)[:count].tolist()
        pairs = [divmod(place, len(self.key_writers)) for place in order]
        return [
            (self.query_writers[i], self.key_writers[j], self.matrix[i, j].item()) for i, j in pairs
        ]


@torch.no_grad()
def attribute_score(
    backend: Backend,
    frozen: FrozenPass,
    head: Head,
    query: int,
    key: int,
    transcoder: CrossLayerTranscoder | None = None,
    *,
    contrast: bool = False,
    follow: bool = False,
) -> ScoreAttribution:
    """Take one score of a head apart.

    Args:
        backend: The model.
        frozen: Its pass on the prompt.
        head: Which head.
        query: From where it attends.
        key: Where to.
        transcoder: Takes the MLPs apart; without it each is one writer per position.
        contrast: Take the mean score of the other keys off. Writers of one kind, layer and number
            at the key and at the others then count as one.
        follow: Follow what heads wrote back to where they read it, with their patterns held; the
            writers are then embeddings, MLPs (or features and errors) and biases anywhere.
            Otherwise they stand at query and key, heads among them.

    Raises:
        ValueError: If the head or a position is outside, the key is behind the query, there is no
            other key to contrast it with, or the model's scores are not rebuilt (a softcap, a
            position bias).
    """
    backend.check_sites(Sites(pattern=(head,)))
    if not 0 <= key <= query < len(frozen.tokens) or (contrast and query == 0):
        raise ValueError(
            f"query={query}, key={key}: choose positions below {len(frozen.tokens)}, the key no "
            "later than the query" + (", and another key beside it to contrast" * contrast)
        )
    scores = HeadScores(backend, frozen, head)
    own = frozen.patterns[head.layer, head.index, query]
    writes = stream_writes(frozen, transcoder)
    queries, query_parts = scores.parts(writes, "query", query, follow)
    others = [k for k in range(query + 1) if k != key and own[k] > 0] if contrast else []
    if contrast and not others:
        raise ValueError(
            f"{head} attends from {query} to {key} alone: there is nothing to contrast"
        )
    sums: dict[Writer, Tensor] = {}
    for k in (key, *others):
        keys, key_parts = scores.parts(writes, "key", k, follow)
        share = 1.0 if k == key else -1 / len(others)
        columns = share * scores.scale * (query_parts @ scores.turn(query - k)) @ key_parts.T
        for writer, column in zip(keys, columns.unbind(1), strict=True):
            if contrast and (not follow or writer == keys[-1]):
                index = 0 if writer.kind == "embedding" else writer.index
                writer = replace(writer, pos=key, index=index)
            sums[writer] = sums[writer] + column if writer in sums else column
    matrix = torch.stack(list(sums.values()), 1)
    return ScoreAttribution(
        head,
        query,
        key,
        contrast,
        queries,
        tuple(sums),
        matrix,
        matrix.sum().item(),
        own[key].item(),
    )


class HeadScores:
    """The queries and keys of one head as linear functions of the stream.

    Attributes:
        scale: Of the softmax, read off the pattern.

    Raises:
        ValueError: If the model's scores are not rebuilt from its weights.
    """

    def __init__(self, backend: Backend, frozen: FrozenPass, head: Head) -> None:
        self.frozen, self.head = frozen, head
        layer, index = head.layer, head.index
        weights = head_weights(backend, [layer], fold_norm=True)
        self.rotation = rotation(backend, layer)
        length, stream = len(frozen.tokens), frozen.streams[layer]
        self.maps = {"query": weights.W_Q[0, index], "key": weights.W_K[0, index]}
        nothing = stream.new_zeros(self.maps["query"].shape[1])
        biases = {"query": weights.b_Q, "key": weights.b_K}
        self.biases = {k: nothing if b is None else b[0, index] for k, b in biases.items()}
        self.sizes = {side: stream.new_ones(length) for side in self.maps}
        whole = {side: self._whole(side) for side in self.maps}
        # Norms on queries and keys leave directions as they are.
        with probe_mode(backend.model), backend.capture(Sites(q=(head,), k=(head,))) as captured:
            backend.forward(frozen.tokens[None])
        for side, found in (("query", captured.qs), ("key", captured.ks)):
            size = whole[side].norm(dim=-1).clamp_min(1e-30)
            self.sizes[side] = found[head][0].to(stream).norm(dim=-1) / size
            whole[side] = whole[side] * self.sizes[side][:, None]
        raw = stream.new_zeros(length, length)
        for offset in range(length):
            turned = whole["query"][offset:] @ self.turn(offset)
            pairs = (turned * whole["key"][: length - offset]).sum(-1)
            raw += pairs.diag(-offset) if offset else pairs.diag()
        self.scale = self._fit(backend, raw)

    def turn(self, offset: int) -> Float[Tensor, "d_head d_head"]:
        """What the rotation does to queries so many positions behind their keys."""
        unit = torch.eye(self.maps["query"].shape[1]).to(self.maps["query"])
        return unit if self.rotation is None else self.rotation(unit[None], offset)[0].to(unit)

    def parts(
        self, writes: Writes, side: str, pos: int, follow: bool
    ) -> tuple[tuple[Writer, ...], Float[Tensor, "writer d_head"]]:
        """What each writer adds to the query or key at a position; last the biases."""
        scale = self.sizes[side][pos]
        reader = self.frozen.scales[self.head.layer, pos] * scale * self.maps[side].T
        time = 2 * self.head.layer
        if follow:
            gradient = reader.new_zeros(len(reader), *self.frozen.embedding.shape)
            gradient[:, pos] = reader
            amounts = writes.read(pulled(self.frozen, gradient, time))
        else:
            here = (writes.pos == pos) & (writes.times <= time)
            amounts = reader.new_zeros(len(reader), len(here))
            amounts[:, here] = reader @ writes.vectors[here].T
        found = writes.per_writer(amounts).T
        adds = found.any(1).tolist()
        kept = [
            place
            for place, writer in enumerate(writes.writers)
            if adds[place] and not (follow and writer.kind == "head")
        ]
        writers = tuple(writes.writers[place] for place in kept)
        # Of the head's own layer: biases of layers below are writers.
        own = Writer("constant", self.head.layer, pos)
        return (*writers, own), torch.cat([found[kept], scale * self.biases[side][None]])

    def _whole(self, side: str) -> Float[Tensor, "pos d_head"]:
        layer = self.head.layer
        read = self.frozen.scales[layer][:, None] * self.frozen.streams[layer]
        return read @ self.maps[side] + self.biases[side]

    def _fit(self, backend: Backend, raw: Float[Tensor, "query key"]) -> float:
        """The softmax's scale, read off the pattern, which it must reproduce."""
        pattern = self.frozen.patterns[self.head.layer, self.head.index]
        seen = pattern > 0
        logs = torch.where(seen, pattern, 1.0).log()
        centred = [values - (pattern * values).sum(1, keepdim=True) for values in (raw, logs)]
        size = (pattern * centred[0].square()).sum()
        # Where all scores are alike any scale will do.
        spread = size > 1e-12
        scale = ((pattern * centred[0] * centred[1]).sum() / size).item() if spread else 1.0
        rebuilt = (scale * raw).masked_fill(~seen, float("-inf")).softmax(1)
        if not (error := (rebuilt - pattern).abs().max().item()) <= 1e-3:
            raise ValueError(
                f"the scores of {self.head} in {type(backend.model).__name__} are not rebuilt from "
                f"its weights (attention differs by {error:.2g}; a softcap, a position bias?), so "
                "they cannot be taken apart"
            )
        return scale


def _ranked(writers: tuple[Writer, ...], amounts: Float[Tensor, " writer"]) -> dict[Writer, float]:
    order = amounts.abs().argsort(descending=True).tolist()
    return {writers[place]: amounts[place].item() for place in order}
