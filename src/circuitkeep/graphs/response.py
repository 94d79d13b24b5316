"""What an attribution graph says that an intervention does: its predicted effect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import probe_mode
from circuitkeep.graphs.changes import (
    CleanRun,
    FeatureChange,
    HeadChange,
    Intervention,
    PathChange,
    check_change,
    each,
    path_values,
)
from circuitkeep.graphs.graph import Graph, Node


@torch.no_grad()
def predicted_effects(
    run: CleanRun, graph: Graph, interventions: Sequence[Intervention], last_norm: bool = False
) -> Float[Tensor, "intervention logit"]:
    r"""What the graph says that interventions do to its logit nodes, in logits.

    The graph is linear: a source's contribution to a target is its activation times a weight,
    :math:`E_{ts} = a_s w_{ts}`. So where a change makes the source's activation :math:`a_s +
    \Delta_s`, the target's pre-activation changes by :math:`w_{ts} \Delta_s = E_{ts} \Delta_s /
    a_s`: the relative change of the source times its contribution. An active feature's activation
    is its pre-activation, so that

    .. math:: \Delta = W \Delta + e, \qquad W_{ts} = E_{ts} / a_s, \qquad
        \Delta = (I - W)^{-1} e,

    with what the intervention itself brings into the graph, :math:`e`; rows of features that are
    set from outside are left out, because they answer to nothing. Nodes of a layer contribute to
    higher layers alone, so the sum is solved layer by layer. Errors and embeddings do not change,
    no feature falls silent, and none that was silent comes up: that is what the prediction leaves
    out. A changed head or path brings in what its write contributes to every node directly.

    Args:
        run: Of the prompt that the graph is of.
        graph: With the features that the interventions change.
        interventions: The changes of a row are made together. What a changed head reads is the
            clean run's, even if another change of the row is upstream of it.
        last_norm: Let the final norm divide by the size of the changed stream: what all changed
            features and heads write is carried to the last position by attention as in the graph,
            and unembedded by the model itself. The graph holds that norm.

    Raises:
        ValueError: If a feature that is changed is active and not in the graph, or the graph is
            of another prompt.
    """
    if run.frozen.tokens.tolist() != list(graph.tokens):
        raise ValueError("the graph and the run are of different prompts")
    for changes in interventions:
        for change in changes:
            check_change(run, change)
    written = _head_writes(run, interventions)
    entry = direct_effects(run, graph, written)
    fixed = _set_from_outside(run, graph, interventions).to(entry)
    free = fixed.isnan()
    weights = node_weights(graph).to(entry)
    change = torch.where(free, 0, fixed)
    for block in _blocks(graph):
        answer = change @ weights[block].T + entry[:, block]
        change[:, block] = torch.where(free[:, block], answer, fixed[:, block])
    if not last_norm:
        return change[:, graph.of_kind("logit")]
    return _unembedded(run, graph, _last_stream(run, graph, written, change))


def node_weights(graph: Graph) -> Float[Tensor, "target source"]:
    """By how much a target's value changes per unit of a feature's activation."""
    silent = graph.activations == 0
    return torch.where(silent, 0, graph.edges / graph.activations.masked_fill(silent, 1))


def direct_effects(
    run: CleanRun, graph: Graph, written: Float[Tensor, "row layer pos d_model"]
) -> Float[Tensor, "row node"]:
    """What vectors contribute to every node of the graph through attention alone.

    Args:
        run: Of the graph's prompt.
        graph: Its nodes are the targets.
        written: What is added to what each layer's attention writes.
    """
    frozen = run.frozen
    stream = torch.zeros_like(written[:, 0])
    result = written.new_zeros(len(written), len(graph))
    for layer in range(frozen.n_layers):
        after = stream + frozen.attend(layer, stream) + written[:, layer]
        read = stream if frozen.parallel[layer] else after
        places, pos, encoders = _readers(run, graph, layer)
        result[:, places] = torch.einsum("rnd,nd->rn", read[:, pos], encoders)
        stream = after
    logits = graph.of_kind("logit")
    unembed = [frozen.readout(graph.nodes[place].index) for place in logits.nonzero()[:, 0]]
    result[:, logits] = stream[:, -1] @ torch.stack(unembed).T
    return result


def _last_stream(
    run: CleanRun,
    graph: Graph,
    written: Float[Tensor, "row layer pos d_model"],
    change: Float[Tensor, "row node"],
) -> Float[Tensor, "row d_model"]:
    """By how much changed heads and features change what the final norm reads, last position."""
    frozen, transcoder = run.frozen, run.transcoder
    stream = torch.zeros_like(written[:, 0])
    mlps = torch.zeros_like(written)
    for layer in range(frozen.n_layers):
        stream = stream + frozen.attend(layer, stream) + written[:, layer]
        places, pos, index = _features(graph, layer)
        if transcoder is not None and places:
            active = change.new_zeros(*stream.shape[:2], transcoder.config.n_features)
            active[:, pos, index] = change[:, places]
            for at, target in enumerate(transcoder.config.written(layer)):
                mlps[:, target] += active @ transcoder.W_dec[layer][:, at].to(active)
        stream = stream + mlps[:, layer]
    return stream[:, -1]


def _unembedded(
    run: CleanRun, graph: Graph, moved: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row logit"]:
    """The effect on the graph's logits of a change of what the final norm reads."""
    frozen, backend = run.frozen, run.backend
    last = len(frozen.tokens) - 1
    stream = frozen.streams[-1].expand(len(moved), -1, -1).clone()
    stream[:, last] += moved
    tokens = frozen.tokens.expand(len(moved), -1)
    dtype = next(backend.model.parameters()).dtype
    positions = torch.tensor([last], device=tokens.device)
    with probe_mode(backend.model):
        logits = backend.resume(backend.n_layers, stream.to(dtype), tokens, positions)
    assert logits is not None
    difference = logits[:, 0] - frozen.logits[last]
    difference = difference - difference.mean(-1, keepdim=True)
    return difference[:, [node.index for node in graph.nodes if node.kind == "logit"]]


def _head_writes(
    run: CleanRun, rows: Sequence[Intervention]
) -> Float[Tensor, "row layer pos d_model"]:
    """By how much changed heads and paths change what attention writes."""
    frozen = run.frozen
    written = frozen.mlp_out.new_zeros(len(rows), *frozen.mlp_out.shape)
    changes: list[tuple[int, HeadChange | PathChange, Tensor]] = [
        *((row, change, head_values(run, change)) for row, change in each(rows, HeadChange)),
        *((row, change, path_values(run, change)) for row, change in each(rows, PathChange)),
    ]
    for row, change, values in changes:
        layer, index = change.head.layer, change.head.index
        write = values.to(frozen.W_O) @ frozen.W_O[layer, index]
        written[row, layer, change.query] += write * frozen.scales_after[layer, change.query]
    return written


def head_values(run: CleanRun, change: HeadChange) -> Float[Tensor, " d_value"]:
    """By how much a changed head's output before W_O changes at its query."""
    layer, index = change.head.layer, change.head.index
    keys = slice(None) if change.key is None else slice(change.key, change.key + 1)
    weights = run.frozen.patterns[layer, index, change.query, keys].to(run.values)
    return (change.factor - 1) * (weights @ run.values[layer, index, keys])


def _set_from_outside(
    run: CleanRun, graph: Graph, rows: Sequence[Intervention]
) -> Float[Tensor, "row node"]:
    """By how much interventions change the features that they set; NaN for all other nodes."""
    result = graph.activations.new_full((len(rows), len(graph)), torch.nan)
    for row, change in each(rows, FeatureChange):
        node = Node("feature", change.layer, change.pos, change.feature)
        clean = run.activations[change.layer, change.pos, change.feature].item()
        if node in graph.places:
            result[row, graph.places[node]] = clean * (change.factor - 1)
        elif clean:
            raise ValueError(f"{change}: the feature is active, but not in the graph")
    return result


def _blocks(graph: Graph) -> list[Int[Tensor, " node"]]:
    """The nodes that answer, layer by layer."""
    layers = torch.tensor([node.layer for node in graph.nodes])
    answering = graph.of_kind("feature") | graph.of_kind("logit")
    numbers = layers[answering].unique().tolist()
    return [((layers == number) & answering).nonzero()[:, 0] for number in numbers]


def _readers(run: CleanRun, graph: Graph, layer: int) -> tuple[list[int], list[int], Tensor]:
    """The features of a layer: where they are in the graph, at which positions, what they read."""
    places, pos, index = _features(graph, layer)
    if run.transcoder is None or not places:
        return [], [], run.frozen.streams.new_zeros(0, run.frozen.streams.shape[-1])
    scale = run.transcoder.input_scale(run.frozen.mlp_in)[layer, pos]
    return places, pos, run.transcoder.W_enc[layer, index] * scale[:, None]


def _features(graph: Graph, layer: int) -> tuple[list[int], list[int], list[int]]:
    """The features of a layer: where they are in the graph, their positions and numbers."""
    found = [(p, n) for p, n in enumerate(graph.nodes) if n.kind == "feature" and n.layer == layer]
    return [p for p, _ in found], [n.pos for _, n in found], [n.index for _, n in found]
