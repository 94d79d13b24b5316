"""The strongest single paths into a readout: a writer, then head after head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.circuits import Head
from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.heads import head_reads
from circuitkeep.graphs.writes import Readout, Writer, Writes, stream_writes
from circuitkeep.transcoders import CrossLayerTranscoder


@dataclass(frozen=True)
class Hop:
    """A head, where it attends from and where to."""

    head: Head
    query: int
    key: int


@dataclass(frozen=True)
class Path:
    """What one writer does to a readout along one way.

    Attributes:
        source: What writes; no head.
        hops: The heads on the way, the first one read first; none for the direct path.
        value: The product along the path, in the readout's units.
    """

    source: Writer
    hops: tuple[Hop, ...]
    value: float

    def __str__(self) -> str:
        hops = "".join(f" → {hop.head} {hop.query}←{hop.key}" for hop in self.hops)
        return f"{self.source}{hops}: {self.value:+.3f}"


@dataclass(frozen=True, eq=False)
class _Way:
    """The end of a path: from `pos` before the attention of the layer that reads at `time`."""

    hops: tuple[Hop, ...]
    gradient: Float[Tensor, " d_model"]
    pos: int
    time: int


@torch.no_grad()
def strongest_paths(
    frozen: FrozenPass,
    readout: Readout,
    transcoder: CrossLayerTranscoder | None = None,
    count: int = 20,
    beam: int | None = 64,
) -> list[Path]:
    """The paths with the largest products, by size.

    Every value is exact. Paths are found from their ends: of the ways through so many heads,
    those are followed further along which most comes, all writers counted without sign.

    Args:
        frozen: The pass.
        readout: Where paths end.
        transcoder: Takes the MLPs apart; without it each is one writer per position.
        count: Paths.
        beam: Ways followed at each number of heads; None for all (small models only). With too
            few a strong path can be missed.
    """
    writes = stream_writes(frozen, transcoder)
    ways = [_Way((), readout.direction, readout.pos, readout.time)]
    found: list[Path] = []
    while ways:
        found += [path for way in ways for path in _ends(writes, way)]
        found = sorted(found, key=lambda path: -abs(path.value))[:count]
        longer = [entry for way in ways for entry in _longer(frozen, writes, way)]
        longer.sort(key=lambda entry: -entry[0])
        ways = [way for _, way in longer[:beam]]
    return found


def _ends(writes: Writes, way: _Way) -> list[Path]:
    """What is written straight to where a way begins."""
    here = (writes.pos == way.pos) & (writes.times <= way.time)
    values = writes.per_writer((writes.vectors @ way.gradient) * here)
    return [
        Path(writes.writers[place], way.hops, values[place].item())
        for place in values.nonzero()[:, 0].tolist()
        if writes.writers[place].kind != "head"
    ]


def _longer(frozen: FrozenPass, writes: Writes, way: _Way) -> list[tuple[float, _Way]]:
    """The ways with one head more, each with the size of all that comes along it."""
    found = []
    heads = torch.arange(frozen.n_heads, device=frozen.embedding.device)
    query = torch.full_like(heads, way.pos)
    gradient = torch.zeros_like(frozen.embedding)
    gradient[way.pos] = way.gradient
    for layer in range((way.time + 1) // 2):
        sizes = _per_key(writes, head_reads(frozen, writes, layer, gradient, heads, query).abs())
        after = frozen.scales_after[layer, way.pos] * way.gradient
        read = frozen.W_V[layer] @ (frozen.W_O[layer] @ after)[:, :, None]
        weights = frozen.patterns[layer, :, way.pos] * frozen.scales[layer]
        for head, key in sizes.nonzero().tolist():
            hop = Hop(Head(layer, head), way.pos, key)
            pulled = weights[head, key] * read[head, :, 0]
            step = _Way((hop, *way.hops), pulled, key, 2 * layer)
            found.append((sizes[head, key].item(), step))
    return found


def _per_key(writes: Writes, amounts: Float[Tensor, "head write"]) -> Float[Tensor, "head key"]:
    total = amounts.new_zeros(len(amounts), _length(writes.pos))
    return total.index_add(1, writes.pos, amounts)


def _length(pos: Int[Tensor, " write"]) -> int:
    return int(pos.max()) + 1
