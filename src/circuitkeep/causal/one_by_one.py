"""Many single interventions at the price of few passes.

What comes before an intervention does not depend on it. So the pass resumes at the edited layer,
from the residual stream of one plain pass, with the rows repeated once per intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, Edits, Sites, probe_mode
from circuitkeep.causal import answers
from circuitkeep.causal.answers import (
    Metric,
    answer_slots,
    asked_of,
    score_asked_streams,
    score_logits,
)
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch

Progress = Callable[[int, int], None]
"""Told how many interventions are done, and of how many."""


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


def counting(progress: Progress, total: int) -> Callable[[int], None]:
    """Adds up what it is told, and tells `progress` the sum."""
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return tell


@torch.no_grad()
def residuals(
    backend: Backend, batch: ProbeBatch, layers: Sequence[int], metric: Metric
) -> tuple[dict[int, Float[Tensor, "batch pos d_model"]], Float[Tensor, " batch"]]:
    """The residual stream after each of `layers`, and the metric, of one plain pass.

    The batch is on the model's device, and its rows fit one pass.
    """
    positions, _ = answer_slots(batch)
    sites = Sites(resid=tuple(sorted(set(layers))), logits=True)
    with probe_mode(backend.model), backend.capture(sites) as captured:
        logits = backend.forward(batch.tokens, positions)
    assert logits is not None
    return captured.resids, score_logits(logits, batch, metric)[0]


@torch.no_grad()
def score_heads_edited(
    backend: Backend,
    batch: ProbeBatch,
    values: Mapping[Head, Tensor],
    before: Mapping[int, Float[Tensor, "batch pos d_model"]],
    metric: Metric,
    site: Literal["z", "pattern"] = "z",
    tell: Callable[[int], None] = lambda _: None,
) -> Float[Tensor, "batch head"]:
    """The metric with each head of `values` edited alone, in the order of `values`.

    Args:
        backend: The model.
        batch: On its device; the rows fit one pass.
        values: Per head, what its output (or pattern) is replaced by; broadcasts to the batch.
        before: See `residuals`; must hold the layer before each head's.
        metric: See `Metric`.
        site: What is replaced.
        tell: Told how many interventions (rows times heads) have come in.
    """
    last = backend.n_layers - 1
    asked: dict[Head, Tensor] = {}
    for layer, group in groupby(sorted(values), key=lambda head: head.layer):
        # Copies of the rows, as many at a time as keep a pass within its usual size.
        for heads in _split(list(group), max(1, answers.CHUNK // len(batch))):
            n = len(heads)
            edit = {head: _own_copy(values[head], i, n) for i, head in enumerate(heads)}
            edits = Edits(z=edit) if site == "z" else Edits(pattern=edit)
            hidden, tokens = before[layer - 1].repeat(n, 1, 1), batch.tokens.repeat(n, 1)
            with (
                probe_mode(backend.model),
                backend.edit(edits),
                backend.capture(Sites(resid=(last,))) as captured,
            ):
                # A pass that cannot stop early (FSDP) unembeds one position in vain.
                backend.resume(layer, hidden, tokens, batch.answer_position[:1])
            asked.update(zip(heads, asked_of(captured.resids[last], batch), strict=True))
            tell(n * len(batch))
    streams = torch.stack([asked[head] for head in values])
    return score_asked_streams(backend, streams, batch, metric).T


def _own_copy(value: Tensor, index: int, copies: int) -> Callable[[Tensor], Tensor]:
    """Edits one of `copies` copies of the rows, and leaves the others as they are."""

    def edit(own: Tensor) -> Tensor:
        rows = own.unflatten(0, (copies, -1)).clone()
        rows[index] = value.to(own)
        return rows.flatten(0, 1)

    return edit


def _split(heads: list[Head], size: int) -> list[list[Head]]:
    return [heads[start : start + size] for start in range(0, len(heads), size)]
