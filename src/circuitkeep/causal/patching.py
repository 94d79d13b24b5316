"""Activation patching: parts of one run put into another, jointly or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.capture import Backend, Captured, Edit, Edits, Sites, probe_mode
from circuitkeep.causal import answers
from circuitkeep.causal.answers import (
    Metric,
    answer_slots,
    check_metric,
    chunks,
    score_answers,
    score_logits,
)
from circuitkeep.causal.one_by_one import (
    Progress,
    counting,
    no_progress,
    residuals,
    score_heads_edited,
)
from circuitkeep.causal.pairs import Direction, Patched, check_pairs, runs
from circuitkeep.circuits import Head, did_you_mean
from circuitkeep.probes import ProbeBatch

HeadSite = Literal["z", "pattern"]


@torch.no_grad()
def patch(
    backend: Backend,
    batch: ProbeBatch,
    sites: Sites,
    direction: Direction,
    metric: Metric = "log_prob_nats",
    positions: Bool[Tensor, "batch pos"] | None = None,
) -> Patched:
    """Patch all of `sites` jointly between clean and corrupted prompts.

    Args:
        backend: The model.
        batch: Clean prompts with corrupted ones beside them, position by position.
        sites: ``z``, ``pattern`` (z is recomputed of the other run's pattern and the own values)
            and ``resid``; ``resid=(-1,)`` is what enters layer 0.
        direction: See `Direction`.
        metric: See `Metric`; of the clean prompts' answers in both runs.
        positions: Where to patch (queries, for a pattern); everywhere if None.

    Returns:
        ``patched`` has the axis ``batch`` alone.

    Raises:
        ValueError: If the prompts do not agree position by position, or a site is outside the
            model or cannot be patched.

    Source:
        Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262. On the two
        directions: Heimersheim and Nanda 2024, arXiv:2404.15255.
    """
    check_pairs(batch)
    check_metric(metric, batch)
    if sites.result or sites.q or sites.k or sites.v:
        raise ValueError("patching is done at z, pattern and resid; for q, k and v: path_patch")
    found: list[list[Tensor]] = [[], [], []]
    start = 0
    for part in chunks(batch, backend.device):
        base, source = runs(part, direction)
        before, values = _captured(backend, source, sites, metric)
        here = None
        if positions is not None:
            width = base.tokens.shape[1]
            here = positions[start : start + len(part), :width, None].to(backend.device)
        with backend.edit(_edits(values, here)):
            patched = score_answers(backend, base, metric)
        _keep(found, score_answers(backend, base, metric), before, patched)
        start += len(part)
    return _patched(found, direction)


@torch.no_grad()
def patch_each_head(
    backend: Backend,
    batch: ProbeBatch,
    heads: Sequence[Head],
    direction: Direction,
    metric: Metric = "log_prob_nats",
    site: HeadSite = "z",
    progress: Progress = no_progress,
) -> Patched:
    """Patch each of `heads` alone, at all positions; as `patch` does, but in few passes.

    Args:
        backend: The model.
        batch: See `patch`.
        heads: In the order of the last axis of ``patched``.
        direction: See `Direction`.
        metric: See `Metric`.
        site: A head's output, or where it attends.
        progress: Told of rows times heads.

    Returns:
        ``patched`` has the axes ``batch head``.

    Raises:
        ValueError: See `patch`.
    """
    check_pairs(batch)
    check_metric(metric, batch)
    if site not in get_args(HeadSite):
        raise ValueError(f"unknown site {site!r}" + did_you_mean(site, get_args(HeadSite)))
    sites = Sites(z=tuple(heads)) if site == "z" else Sites(pattern=tuple(heads))
    tell = counting(progress, len(batch) * len(heads))
    found: list[list[Tensor]] = [[], [], []]
    for part in chunks(batch, backend.device):
        base, source = runs(part, direction)
        other, captured = _captured(backend, source, sites, metric)
        stored = captured.zs if site == "z" else captured.patterns
        values = {head: stored[head] for head in heads}
        before, own = residuals(backend, base, [head.layer - 1 for head in heads], metric)
        patched = score_heads_edited(backend, base, values, before, metric, site, tell)
        _keep(found, own, other, patched)
    return _patched(found, direction)


@torch.no_grad()
def patch_each_residual(
    backend: Backend,
    batch: ProbeBatch,
    direction: Direction,
    metric: Metric = "log_prob_nats",
    layers: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> Patched:
    """Patch the residual stream after each layer at each position alone.

    Args:
        backend: The model.
        batch: See `patch`.
        direction: See `Direction`.
        metric: See `Metric`.
        layers: -1 is what enters layer 0; all, from -1 on, if None.
        progress: Told of rows times layers times positions.

    Returns:
        ``patched`` has the axes ``batch layer pos``, as many positions as the longest prompt
        has; patching behind a row's end changes nothing.

    Raises:
        ValueError: See `patch`.
    """
    check_pairs(batch)
    check_metric(metric, batch)
    layers = range(-1, backend.n_layers) if layers is None else layers
    width = int(batch.mask.sum(1).max())
    tell = counting(progress, len(batch) * len(layers) * width)
    found: list[list[Tensor]] = [[], [], []]
    for part in chunks(batch, backend.device):
        base, source = runs(part, direction)
        into, own = residuals(backend, base, layers, metric)
        values, other = residuals(backend, source, layers, metric)
        slots, _ = answer_slots(base)
        here = base.tokens.shape[1]
        patched = own[:, None, None].repeat(1, len(layers), width)
        for i, layer in enumerate(layers):
            for some in torch.arange(here).split(max(1, answers.CHUNK // len(base))):
                hidden = into[layer].repeat(len(some), 1, 1).unflatten(0, (len(some), -1))
                for copy, position in enumerate(some.tolist()):
                    hidden[copy, :, position] = values[layer][:, position]
                tokens = base.tokens.repeat(len(some), 1)
                with probe_mode(backend.model):
                    logits = backend.resume(layer + 1, hidden.flatten(0, 1), tokens, slots)
                assert logits is not None
                patched[:, i, some] = score_logits(logits, base, metric).T
                tell(len(some) * len(base))
            tell((width - here) * len(base))
        _keep(found, own, other, patched)
    return _patched(found, direction)


def _captured(
    backend: Backend, batch: ProbeBatch, sites: Sites, metric: Metric
) -> tuple[Float[Tensor, " batch"], Captured]:
    """The metric of a plain pass, and what it left at `sites`."""
    with backend.capture(sites) as captured:
        value = score_answers(backend, batch, metric)
    return value, captured


def _edits(captured: Captured, here: Bool[Tensor, "batch pos 1"] | None) -> Edits:
    def edit(value: Tensor) -> Edit:
        if here is None:
            return value
        chosen = here
        return lambda own: torch.where(chosen, value.to(own), own)

    return Edits(
        z={head: edit(value) for head, value in captured.zs.items()},
        pattern={head: edit(value) for head, value in captured.patterns.items()},
        resid={layer: edit(value) for layer, value in captured.resids.items()},
    )


def _keep(found: list[list[Tensor]], base: Tensor, source: Tensor, patched: Tensor) -> None:
    for values, value in zip(found, (base, source, patched), strict=True):
        values.append(value.cpu())


def _patched(found: list[list[Tensor]], direction: Direction) -> Patched:
    base, source, patched = (torch.cat(values) for values in found)
    if direction == "denoising":
        return Patched(clean=source, corrupted=base, patched=patched)
    return Patched(clean=base, corrupted=source, patched=patched)
