"""Ablation of heads, jointly or one by one, and what it costs on the answers of a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.causal.answers import (
    Metric,
    answer_log_probs,
    answer_loss,
    check_metric,
    chunks,
    mean_by_row,
    score_answers,
)
from circuitkeep.causal.one_by_one import (
    Progress,
    counting,
    no_progress,
    residuals,
    score_heads_edited,
)
from circuitkeep.circuits import Head, did_you_mean
from circuitkeep.probes import ProbeBatch

__all__ = [
    "MEAN",
    "Ablation",
    "ablate_each",
    "ablation_effect",
    "answer_log_probs",
    "answer_loss",
    "chunks",
    "derange",
    "mean_by_row",
    "mean_outputs",
    "replacements",
]

Kind = Literal["mean", "resample", "zero"]


@dataclass(frozen=True)
class Ablation:
    """What is put in the place of a head's output (before W_O).

    Attributes:
        kind: ``mean``: the head's mean output, over all real positions of all rows of `means_over`
            (of the measured batch itself where that is None). ``resample``: its output at the
            same position of another row of the same length, drawn once per row. ``zero``: zeros,
            which no head puts out in nature, so the cost says as much of the intervention as of
            the head; only for those who ask for it.
        seed: Which rows are drawn; for ``resample`` only.
        means_over: Rows that the means are taken over; for ``mean`` only.

    Raises:
        ValueError: If the kind is unknown, or ``means_over`` is given for another than ``mean``.
    """

    kind: str
    seed: int = 0
    means_over: ProbeBatch | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"unknown ablation {self.kind!r}" + did_you_mean(self.kind, get_args(Kind))
            )
        if self.means_over is not None and self.kind != "mean":
            raise ValueError(f"means_over is for ablation 'mean', not for {self.kind!r}")


MEAN = Ablation("mean")


@torch.no_grad()
def mean_outputs(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch
) -> dict[Head, Float[Tensor, " d_head"]]:
    """Mean output (before W_O) of each head, over all real positions of all rows of `batch`.

    This is what mean ablation puts in the head's place.
    """
    total = torch.zeros(len(heads), backend.d_head, device=backend.device, dtype=torch.float64)
    count = 0
    sites = Sites(z=tuple(heads))
    with probe_mode(backend.model):
        for part in chunks(batch, backend.device):
            with backend.capture(sites) as captured:
                backend.forward(part.tokens)
            # Without a float64 device (MPS) the sum would have to be fp32; none is supported.
            total += torch.einsum("bhpd,bp->hd", captured.z.double(), part.mask.double())
            count += int(part.mask.sum())
    return dict(zip(heads, (total / count).unbind(0), strict=True))


def derange(mask: Bool[Tensor, "batch pos"], seed: int) -> Int[Tensor, " batch"]:
    """For each row another row of the same length, each used once; the same seed, the same rows.

    Raises:
        ValueError: If a row is the only one of its length.
    """
    lengths = mask.sum(1).cpu()
    generator = torch.Generator().manual_seed(seed)
    source = torch.empty(len(lengths), dtype=torch.long)
    for length in lengths.unique():
        rows = (lengths == length).nonzero()[:, 0]
        if len(rows) == 1:
            raise ValueError(
                f"row {int(rows)} is the only one with {int(length)} tokens, so there is no other "
                "row to resample it from; use mean ablation, or more rows"
            )
        order = rows[torch.randperm(len(rows), generator=generator)]
        source[order] = order.roll(1)
    return source


@torch.no_grad()
def replacements(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch, ablation: Ablation
) -> dict[Head, Float[Tensor, "#batch #pos d_head"]]:
    """What `ablation` puts in the place of each head's output, for all rows of `batch`.

    Raises:
        ValueError: If a head is outside the model, or rows cannot be resampled.
    """
    if ablation.kind == "zero":
        backend.check_sites(Sites(z=tuple(heads)))
        zeros = torch.zeros(1, 1, backend.d_head, device=backend.device)
        return dict.fromkeys(heads, zeros)
    if ablation.kind == "mean":
        over = batch if ablation.means_over is None else ablation.means_over
        means = mean_outputs(backend, heads, over)
        return {head: mean[None, None] for head, mean in means.items()}
    source = derange(batch.mask, ablation.seed)
    found: dict[Head, list[Tensor]] = {head: [] for head in heads}
    for part in chunks(batch, backend.device):
        with probe_mode(backend.model), backend.capture(Sites(z=tuple(heads))) as captured:
            backend.forward(part.tokens)
        for head in heads:
            found[head].append(captured.zs[head])
    return {head: torch.cat(parts)[source.to(backend.device)] for head, parts in found.items()}


def rows_of(values: Mapping[Head, Tensor], start: int, count: int) -> dict[Head, Tensor]:
    """The part of `replacements` that belongs to `count` rows from `start` on."""
    return {
        head: value if len(value) == 1 else value[start : start + count]
        for head, value in values.items()
    }


@torch.no_grad()
def score_ablated(
    backend: Backend,
    heads: Sequence[Head],
    batch: ProbeBatch,
    ablation: Ablation,
    metric: Metric,
    values: Mapping[Head, Tensor] | None = None,
) -> Float[Tensor, " batch"]:
    """The metric per row (on the CPU) with `heads` ablated jointly.

    Args:
        backend: The model.
        heads: May be none, for the model as it is.
        batch: Probe rows.
        ablation: What takes the heads' place.
        metric: See `Metric`.
        values: What `replacements` found for these heads and perhaps more, if it is at hand.
    """
    check_metric(metric, batch)
    if values is None:
        values = replacements(backend, heads, batch, ablation) if heads else {}
    values = {head: values[head] for head in heads}
    scores: list[Tensor] = []
    start = 0
    for part in chunks(batch, backend.device):
        with backend.ablate(rows_of(values, start, len(part))):
            scores.append(score_answers(backend, part, metric).cpu())
        start += len(part)
    return torch.cat(scores)


def ablation_effect(
    backend: Backend, heads: Sequence[Head], batch: ProbeBatch, ablation: Ablation = MEAN
) -> Float[Tensor, " batch"]:
    """How many nats per answer token it costs, per row, to ablate `heads` jointly.

    Mean ablation over the batch's own real positions, of the same model, unless `ablation` says
    otherwise. Other heads may make up for the ablated ones (self-repair, McGrath et al. 2023,
    arXiv:2307.15771), so this is a lower bound on what the heads do.
    """
    clean = answer_loss(backend, batch)
    return -score_ablated(backend, heads, batch, ablation, "log_prob_nats") - clean


@torch.no_grad()
def ablate_each(
    backend: Backend,
    heads: Sequence[Head],
    batch: ProbeBatch,
    ablation: Ablation,
    metric: Metric = "log_prob_nats",
    progress: Progress = no_progress,
) -> Float[Tensor, "batch head"]:
    """How much of the metric it costs, per row, to ablate each of `heads` alone.

    The same as `ablation_effect` head by head, but the pass resumes at the head's layer, with
    the rows repeated once per head.

    Args:
        backend: The model.
        heads: In the order of the last axis of the result.
        batch: Probe rows.
        ablation: What takes a head's place.
        metric: See `Metric`; in nats per answer token, or in logits.
        progress: Told of rows times heads.

    Returns:
        The metric of the model as it is minus that of the ablated one (on the CPU), positive for
        heads that help; a lower bound, as for `ablation_effect`.

    Raises:
        ValueError: If a head is outside the model, rows cannot be resampled, or the batch cannot
            give the metric.
    """
    check_metric(metric, batch)
    values = replacements(backend, heads, batch, ablation)
    layers = [head.layer - 1 for head in heads]
    tell = counting(progress, len(heads) * len(batch))
    costs: list[Tensor] = []
    start = 0
    for part in chunks(batch, backend.device):
        before, clean = residuals(backend, part, layers, metric)
        here = rows_of(values, start, len(part))
        scores = score_heads_edited(backend, part, here, before, metric, tell=tell)
        costs.append((clean[:, None] - scores).cpu())
        start += len(part)
    return torch.cat(costs)
