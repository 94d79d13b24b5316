r"""What flows through a model's heads into one readout, as a graph that conserves it.

In a frozen pass (see `circuitkeep.graphs.frozen`) a readout is linear in what is written to the
stream. With :math:`g` its total gradient, a writer of :math:`u` at position :math:`k` is worth
:math:`u \cdot g_k`, taken where it enters. Of that

.. math:: u \, W_V W_O \cdot g_q \; s'_q A_{qk} s_k

flows through head :math:`h` at query :math:`q`, for every head behind, and the rest directly.
What flows into a head is what the head is worth; nothing is lost or counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.graphs.frozen import FrozenPass
from circuitkeep.graphs.writes import Readout, Writer, Writes, gradients, stream_writes
from circuitkeep.transcoders import CrossLayerTranscoder

_LARGEST = 2**27  # flows of 512 MiB in single precision


@dataclass(frozen=True)
class Flow:
    """One edge of a head graph.

    Attributes:
        source: Where it begins.
        target: The head through which it goes next; None for the readout itself.
        value: What of the readout comes this way.
        influence: Its share of all that reaches the readout, counted without sign.
    """

    source: Writer
    target: Writer | None
    value: float
    influence: float


@dataclass(frozen=True, eq=False)
class HeadGraph:
    """All flows into one readout.

    Attributes:
        readout: What is explained.
        writers: Embeddings, heads at their queries, MLPs or features and errors, biases.
        values: What each is worth: of the readout, in its units, by all ways.
        direct: Of that, what no further head reads.
        heads: The writers that are heads with something to say, layer by layer.
        flows: From each writer through each of `heads`.
    """

    readout: Readout
    writers: tuple[Writer, ...]
    values: Float[Tensor, " writer"]
    direct: Float[Tensor, " writer"]
    heads: Int[Tensor, " head_node"]
    flows: Float[Tensor, "head_node writer"]

    @property
    def sources(self) -> Bool[Tensor, " writer"]:
        """Writers that are no heads: their values and the readout's bias sum to the readout."""
        return torch.tensor([writer.kind != "head" for writer in self.writers])

    def imbalance(self) -> float:
        """The largest failure of conservation, over the largest sum of flows without sign."""
        inflow = self.flows.sum(1) - self.values[self.heads]
        outflow = self.flows.sum(0) + self.direct - self.values
        total = self.values[self.sources.to(self.values.device)].sum() + self.readout.bias
        whole = torch.stack([self.direct.sum() + self.readout.bias, total]) - self.readout.value
        size = torch.cat([self.direct[None], self.flows]).abs().sum(1).max()
        worst = torch.cat([inflow, outflow, whole]).abs().max()
        return (worst / size.clamp_min(1e-30)).item()

    def influences(
        self,
    ) -> tuple[Float[Tensor, " writer"], Float[Tensor, "head_node writer"]]:
        """The share of the readout that runs along each edge, counted without sign.

        What flows into the readout, and into each head, counts by its size as a share of all that
        flows in; a head passes on what reached the readout from it.

        Returns:
            Of the direct edges, and of those into `heads`.
        """
        direct, shares = _shares(self.direct), _shares(self.flows)
        reached = direct.clone()
        edges = torch.zeros_like(self.flows)
        for place in reversed(range(len(self.heads))):
            edges[place] = shares[place] * reached[self.heads[place]]
            reached = reached + edges[place]
        return direct, edges

    def strongest(self, share: float = 0.9) -> list[Flow]:
        """The fewest edges that hold `share` of the influence, the strongest first."""
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: choose a share of the influence above 0, up to 1")
        direct, edges = self.influences()
        ranked, order = torch.cat([direct[None], edges]).flatten().sort(descending=True)
        kept = int((ranked.cumsum(0) < share * ranked.sum()).sum()) + 1
        values = torch.cat([self.direct[None], self.flows]).flatten()
        found = []
        for place, influence in zip(order[:kept].tolist(), ranked.tolist(), strict=False):
            row, column = divmod(place, len(self.writers))
            target = self.writers[int(self.heads[row - 1])] if row else None
            found.append(Flow(self.writers[column], target, values[place].item(), influence))
        return [flow for flow in found if flow.influence > 0]


@torch.no_grad()
def head_graph(
    frozen: FrozenPass,
    readout: Readout,
    transcoder: CrossLayerTranscoder | None = None,
) -> HeadGraph:
    """All flows through heads into a readout.

    Args:
        frozen: The pass.
        readout: See `logit_readout` and `feature_readout`.
        transcoder: Takes the MLPs apart; without it each is one writer per position.

    Raises:
        ValueError: If there are too many flows for the memory, or they do not add up to what the
            model computed.
    """
    writes = stream_writes(frozen, transcoder)
    gradient = gradients(frozen, readout)
    reached = _reached(writes, gradient)
    if (size := len(reached) * len(writes.writers)) > _LARGEST:
        raise ValueError(
            f"{len(reached)} heads at their queries and {len(writes.writers)} writers are "
            f"{size:.1e} flows, more than {_LARGEST:.1e}: choose a shorter prompt, or list "
            "the strongest paths alone"
        )
    direct = torch.zeros_like(gradient)
    direct[:, readout.pos] = readout.direction
    graph = HeadGraph(
        readout,
        writes.writers,
        writes.per_writer(writes.read(gradient)),
        writes.per_writer(writes.read(direct)),
        reached,
        _flows(frozen, writes, gradient, reached),
    )
    wide = frozen.streams.dtype == torch.float64
    if (error := graph.imbalance()) > (1e-9 if wide else 1e-3):
        raise ValueError(
            f"the flows into {readout.name} miss what the model computed by {error:.1g} of their "
            "size: this model is not what its frozen pass says"
        )
    return graph


@torch.no_grad()
def edge_values(frozen: FrozenPass, readout: Readout) -> Float[Tensor, "layer head query key"]:
    """What of a readout each head brings from each key to each query, by all ways from there on.

    The sum over keys is the head's worth at the query. Biases of values are left out.
    """
    gradient = gradients(frozen, readout)
    found = torch.zeros_like(frozen.patterns)
    for layer in range((readout.time + 1) // 2):
        after = frozen.scales_after[layer][:, None] * gradient[2 * layer + 1]
        read = after @ frozen.W_O[layer].mT  # head query d_value
        values = (frozen.scales[layer][:, None] * frozen.streams[layer]) @ frozen.W_V[layer]
        found[layer] = frozen.patterns[layer] * (read @ values.mT)
    return found


def _reached(writes: Writes, gradient: Float[Tensor, "time pos d_model"]) -> Tensor:
    """The heads at queries that the readout depends on."""
    return torch.tensor(
        [
            place
            for place, writer in enumerate(writes.writers)
            if writer.kind == "head"
            and 2 * writer.layer + 1 < len(gradient)
            and gradient[2 * writer.layer + 1, writer.pos].any()
        ],
        dtype=torch.long,
        device=gradient.device,
    )


def _flows(
    frozen: FrozenPass,
    writes: Writes,
    gradient: Float[Tensor, "time pos d_model"],
    heads: Int[Tensor, " head_node"],
) -> Float[Tensor, "head_node writer"]:
    nodes = [writes.writers[place] for place in heads.tolist()]
    rows = gradient.new_zeros(len(nodes), len(writes.writers))
    for layer in sorted({node.layer for node in nodes}):
        here = [place for place, node in enumerate(nodes) if node.layer == layer]
        head, query = (
            torch.tensor([getattr(nodes[place], name) for place in here], device=rows.device)
            for name in ("index", "pos")
        )
        amounts = head_reads(frozen, writes, layer, gradient[2 * layer + 1], head, query)
        rows[here] = writes.per_writer(amounts)
    return rows


def head_reads(
    frozen: FrozenPass,
    writes: Writes,
    layer: int,
    gradient: Float[Tensor, "pos d_model"],
    head: Int[Tensor, " node"],
    query: Int[Tensor, " node"],
) -> Float[Tensor, "node write"]:
    """What each write does through some heads of a layer to what has `gradient` behind them."""
    after = frozen.scales_after[layer, query, None] * gradient[query]
    weights = frozen.W_V[layer, head] @ (frozen.W_O[layer, head] @ after[:, :, None])
    early = writes.times <= 2 * layer
    attention = frozen.patterns[layer, head, query][:, writes.pos]
    return (
        weights[:, :, 0] @ writes.vectors.T * attention * frozen.scales[layer, writes.pos] * early
    )


def _shares(flows: Float[Tensor, "*rest writer"]) -> Float[Tensor, "*rest writer"]:
    size = flows.abs()
    return size / size.sum(-1, keepdim=True).clamp_min(1e-30)
