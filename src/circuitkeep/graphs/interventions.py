"""What changes to features, heads and paths of one prompt really do to its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Captured, Edit, Edits, Sites, probe_mode
from circuitkeep.circuits import Head
from circuitkeep.graphs.changes import (
    CleanRun,
    FeatureChange,
    HeadChange,
    Intervention,
    PathChange,
    all_heads,
    check_change,
    each,
    feature_writes,
    path_values,
)

Hold = Literal["nothing", "patterns", "all but the last norm", "all"]
"""What stays as it was in the clean run. Patterns: where heads attend. All: also what the norms
before attention and unembedding divide by, and what a transcoder of normalized streams does; as in
the graph. The norms inside true MLPs are part of them, and never held."""

Writes = Literal["all", "own layer"]
"""Which of a cross-layer feature's writes are changed in the true model: those to its own and all
later layers, or the first alone, so that later MLPs do the rest."""


@torch.no_grad()
def effects(
    run: CleanRun,
    interventions: Sequence[Intervention],
    logits: Int[Tensor, " logit"],
    *,
    replaced: bool,
    hold: Hold,
    writes: Writes = "all",
    rows: int = 64,
) -> Float[Tensor, "intervention logit"]:
    r"""What interventions do to the logits at the last position, in logits.

    Logits are taken minus their mean over the vocabulary. In the true model the change of a
    feature, :math:`\Delta a`, adds :math:`\Delta a \, W^{dec}_{l \to m}` to what the MLP of each
    layer :math:`m \ge l` writes at its position, on top of what that MLP answers to the changed
    stream. In the replacement model the transcoder's features stand for the MLPs, and what they
    leave out is the clean run's, a constant; the feature is set to its changed activation.

    Args:
        run: The prompt.
        interventions: One row each; the changes of a row are made together.
        logits: Tokens.
        replaced: Whether the transcoder stands in the MLPs' place.
        hold: See `Hold`.
        writes: See `Writes`; for the true model alone.
        rows: Interventions per forward pass.

    Raises:
        ValueError: If a change names what the prompt, model or transcoder does not have, the model
            cannot be replaced for want of a transcoder, or its norms cannot be held.

    Source:
        Ameisen et al. 2025, "Circuit Tracing", section "Validating attribution graph hypotheses
        with interventions"; their later MLPs answer in the true model as they do here.
    """
    if replaced and run.transcoder is None:
        raise ValueError("replaced=True: without a transcoder nothing can replace the MLPs")
    if hold.startswith("all") and (run.frozen.scales_after != 1).any():
        raise ValueError(
            f"{type(run.backend.model).__name__} has a norm behind its attention, which cannot be "
            "held here; choose hold='patterns'"
        )
    for row in interventions:
        for change in row:
            check_change(run, change)
    found = [
        _effects(run, interventions[start : start + rows], replaced, hold, writes)
        for start in range(0, len(interventions), rows)
    ]
    if not found:
        return run.frozen.logits.new_zeros(0, len(logits))
    return torch.cat(found)[:, logits]


def _effects(
    run: CleanRun, rows: Sequence[Intervention], replaced: bool, hold: Hold, writes: Writes
) -> Float[Tensor, "row vocab"]:
    frozen, backend = run.frozen, run.backend
    layers = range(backend.n_layers)
    last = len(frozen.tokens) - 1
    tokens = frozen.tokens.expand(len(rows), -1)
    sites = Sites(resid=(-1, *layers), mlp_in=tuple(layers) if replaced else (), logits=True)
    with probe_mode(backend.model), backend.capture(sites) as captured:
        if replaced:
            mlp: dict[int, Edit] = dict(_Replacement(run, rows, captured, hold).edits())
        else:
            mlp = _added(run, rows, writes)
        pattern, z = _attention(run, rows, captured, hold)
        with backend.edit(Edits(z=z, pattern=pattern, mlp=mlp)):
            changed = backend.forward(tokens, torch.tensor([last], device=tokens.device))
        assert changed is not None
    clean = frozen.logits[last]
    if hold == "all":
        moved = captured.resids[layers[-1]][:, last] - frozen.streams[-1][last]
        difference = (moved * frozen.final_scale[last]).to(frozen.W_U) @ frozen.W_U
    else:
        difference = changed[:, 0] - clean
    return difference - difference.mean(-1, keepdim=True)


def _added(run: CleanRun, rows: Sequence[Intervention], writes: Writes) -> dict[int, Edit]:
    """What is added to the MLPs' outputs in the true model."""
    added = run.frozen.mlp_out.new_zeros(len(rows), *run.frozen.mlp_out.shape)
    touched: set[int] = set()
    for row, change in each(rows, FeatureChange):
        target = feature_writes(run, change)
        stop = change.layer + 1 if writes == "own layer" else len(target)
        added[row, change.layer : stop, change.pos] += target[change.layer : stop]
        touched |= set(range(change.layer, stop))
    return {layer: lambda own, layer=layer: own + added[:, layer] for layer in sorted(touched)}


def _attention(
    run: CleanRun, rows: Sequence[Intervention], captured: Captured, hold: Hold
) -> tuple[dict[Head, Edit], dict[Head, Edit]]:
    """Edits of patterns and of heads' outputs: what is held, cut edges, changed paths."""
    frozen = run.frozen
    cuts: dict[Head, Tensor] = {}
    paths: dict[Head, Tensor] = {}
    size = len(frozen.tokens)
    for row, change in each(rows, HeadChange):
        if change.head not in cuts:
            cuts[change.head] = frozen.patterns.new_ones(len(rows), size, size)
        keys = slice(None) if change.key is None else change.key
        cuts[change.head][row, change.query, keys] *= change.factor
    for row, change in each(rows, PathChange):
        if change.head not in paths:
            paths[change.head] = run.values.new_zeros(len(rows), size, run.values.shape[-1])
        paths[change.head][row, change.query] += path_values(run, change)

    def held(head: Head) -> Callable[[Tensor], Tensor]:
        layer, index = head.layer, head.index
        own = frozen.patterns[layer, index]
        pattern = own * cuts[head] if head in cuts else own

        def z_of(own: Tensor) -> Tensor:
            moved = captured.resids[layer - 1] - frozen.streams[layer]
            moved = (moved * frozen.scales[layer][:, None]) @ frozen.W_V[layer, index].to(moved)
            return pattern.to(own) @ (run.values[layer, index] + moved) + paths.get(head, 0)

        return z_of

    if hold.startswith("all"):
        return {}, {head: held(head) for head in all_heads(run.backend)}
    if hold == "patterns":
        clean = {head: frozen.patterns[head.layer, head.index] for head in all_heads(run.backend)}
        pattern: dict[Head, Edit] = {head: own * cuts.get(head, 1) for head, own in clean.items()}
    else:
        pattern = {head: lambda own, cut=cut: own * cut for head, cut in cuts.items()}
    return pattern, {head: lambda own, more=more: own + more for head, more in paths.items()}


class _Replacement:
    """The transcoder in the MLPs' place, in one forward pass."""

    def __init__(
        self, run: CleanRun, rows: Sequence[Intervention], captured: Captured, hold: Hold
    ) -> None:
        assert run.transcoder is not None
        self.run, self.transcoder, self.captured = run, run.transcoder, captured
        self.hold_scale = hold.startswith("all")
        self.scale = self.transcoder.input_scale(run.frozen.mlp_in)
        self.set = list(each(rows, FeatureChange))
        # What has been written so far to each layer, by the features below it and its own.
        self.written: dict[int, Tensor] = {}

    def edits(self) -> dict[int, Callable[[Tensor], Tensor]]:
        return {
            layer: lambda own, layer=layer: self._layer(layer)
            for layer in range(self.transcoder.config.n_layers)
        }

    def _layer(self, layer: int) -> Float[Tensor, "row pos d_model"]:
        stream = self.captured.mlp_ins[layer]
        if self.hold_scale:
            pre = (stream * self.scale[layer][:, None]) @ self.transcoder.W_enc[layer].T
            active = self.transcoder.activate_layer(layer, pre + self.transcoder.b_enc[layer])
        else:
            active = self.transcoder.encode_layer(layer, stream)
        for row, change in self.set:
            if change.layer == layer:
                clean = self.run.activations[layer, change.pos, change.feature]
                active[row, change.pos, change.feature] = clean * change.factor
        for place, target in enumerate(self.transcoder.config.written(layer)):
            more = active @ self.transcoder.W_dec[layer][:, place]
            self.written[target] = self.written.get(target, 0) + more
        return self.written[layer] + self.transcoder.b_dec[layer] + self.run.errors[layer]
