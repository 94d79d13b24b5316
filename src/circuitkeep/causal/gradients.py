"""Attribution patching: what patching each head would do, estimated by one gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitkeep.capture import Backend, Edit, Edits, Sites
from circuitkeep.causal.answers import Metric, check_metric, chunks, score_answers
from circuitkeep.causal.one_by_one import Progress, no_progress
from circuitkeep.causal.pairs import Direction, Patched, check_pairs, runs
from circuitkeep.causal.patching import patch_each_head
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch


@dataclass(frozen=True)
class AttributionPatched:
    """Estimates for many heads, and exact values for those that came out on top.

    Attributes:
        heads: In the order of the estimates' last axis.
        estimate: To first order; ``patched`` has the axes ``batch head``.
        confirmed: The heads with the largest estimated effects, the largest first.
        exact: Of the confirmed heads, in their order; None if none was to be confirmed.
    """

    heads: tuple[Head, ...]
    estimate: Patched
    confirmed: tuple[Head, ...]
    exact: Patched | None


def attribution_patch(
    backend: Backend,
    batch: ProbeBatch,
    heads: Sequence[Head],
    direction: Direction,
    metric: Metric = "log_prob_nats",
    confirm_top: int = 0,
    progress: Progress = no_progress,
) -> AttributionPatched:
    """Estimate `patch_each_head` at z for all of `heads`, in two forward and one backward pass.

    The effect of patching a head is taken to be linear in its output: the gradient of the metric,
    at the run that is patched, times the difference between the two runs' outputs. The estimate
    is poor where something saturates (a sharp pattern, a norm), so confirm what matters.

    Args:
        backend: The model.
        batch: Clean prompts with corrupted ones beside them, position by position.
        heads: Those to estimate.
        direction: See `circuitkeep.causal.pairs.Direction`.
        metric: See `Metric`.
        confirm_top: How many heads to patch exactly, largest mean effect by absolute value first.
        progress: Told of rows times heads, for the exact part.

    Raises:
        ValueError: If the prompts do not agree position by position, or a head is outside the
            model.

    Source:
        Syed et al. 2023, arXiv:2310.10348; Nanda 2023, "Attribution Patching: Activation Patching
        At Industrial Scale".
    """
    check_pairs(batch)
    check_metric(metric, batch)
    heads = tuple(heads)
    if not 0 <= confirm_top <= len(heads):
        raise ValueError(f"confirm_top={confirm_top}: choose a number from 0 to {len(heads)}")
    sites = Sites(z=heads)
    found: list[list[Tensor]] = [[], [], []]
    for part in chunks(batch, backend.device):
        base, source = runs(part, direction)
        with torch.no_grad(), backend.capture(sites) as other:
            reached = score_answers(backend, source, metric)
        with torch.enable_grad():
            shifts = {head: torch.zeros_like(other.zs[head], requires_grad=True) for head in heads}
            edits = Edits(z={head: _shifted(shift) for head, shift in shifts.items()})
            with backend.edit(edits), backend.capture(sites) as own:
                value = score_answers(backend, base, metric)
            # Rows do not see each other, so the gradient of the sum holds every row's own.
            slopes = torch.autograd.grad(value.nansum(), list(shifts.values()))
        effects = [
            ((other.zs[head] - own.zs[head].detach()) * slope).flatten(1).sum(1)
            for head, slope in zip(heads, slopes, strict=True)
        ]
        value = value.detach()
        estimate = value[:, None] + torch.stack(effects, 1)
        for values, each in zip(found, (value, reached, estimate), strict=True):
            values.append(each.cpu())
    base, source, estimate = (torch.cat(values) for values in found)
    clean, corrupted = (source, base) if direction == "denoising" else (base, source)
    size = (estimate - base[:, None]).nanmean(0).abs()
    top = tuple(heads[i] for i in size.argsort(descending=True, stable=True)[:confirm_top].tolist())
    exact = None
    if top:
        exact = patch_each_head(backend, batch, top, direction, metric, progress=progress)
    return AttributionPatched(heads, Patched(clean, corrupted, estimate), top, exact)


def _shifted(shift: Tensor) -> Edit:
    return lambda own: own + shift
