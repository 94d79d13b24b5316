"""Direct logit attribution and the logit lens: what each part says to the logits by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture import Backend, probe_mode
from circuitkeep.capture.weights import token_weights
from circuitkeep.capture.writes import final_scale, writes
from circuitkeep.causal.answers import (
    Metric,
    answer_slots,
    check_metric,
    chunks,
    mean_by_row,
    score_logits,
)
from circuitkeep.causal.one_by_one import residuals
from circuitkeep.probes import ProbeBatch


@dataclass(frozen=True)
class DirectAttribution:
    """Parts of a logit difference, in logits, per row (means over its answers), on the CPU.

    The difference is the answer's logit minus the distractor's, or minus the mean of all logits
    where the rows have no distractor.

    Attributes:
        heads: What each head writes.
        mlps: What each layer adds beyond its heads and their bias.
        attention_biases: The bias of each layer's W_O.
        embedding: What enters layer 0.
        unembedding_bias: The shift of the final norm and the bias of the unembedding.
        total: The logit difference of the model; the parts add up to it.
    """

    heads: Float[Tensor, "batch layer head"]
    mlps: Float[Tensor, "batch layer"]
    attention_biases: Float[Tensor, "batch layer"]
    embedding: Float[Tensor, " batch"]
    unembedding_bias: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]

    @property
    def layers(self) -> Float[Tensor, "batch layer"]:
        """What each layer adds as a whole."""
        return self.heads.sum(2) + self.mlps + self.attention_biases


@torch.no_grad()
def direct_attribution(backend: Backend, batch: ProbeBatch) -> DirectAttribution:
    """Take the logit of the answer apart, by what wrote it.

    That is its difference to the distractor's logit or, without distractors, to the mean logit of
    all tokens: a shift of all logits alike says nothing. The final norm's scale is frozen at what
    it is for the whole stream, so that the rest is linear. What a part does through later layers
    is not counted.

    Args:
        backend: The model.
        batch: Probe rows with answers.

    Raises:
        ValueError: If the batch has no answers, or the model's logits are not linear in what
            its heads write once the scale is frozen (a norm behind the attention, a softcap).

    Source:
        Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2022,
        arXiv:2211.00593, section 3.
    """
    check_metric("log_prob_nats", batch)
    weights = token_weights(backend, fold_norm=True)
    found: list[list[Tensor]] = []
    for part in chunks(batch, backend.device):
        positions, slot = answer_slots(part)
        parts = writes(backend, part.tokens, positions)
        scale = final_scale(backend, parts.final, parts.logits, weights.W_U, weights.b_U)
        direction = _contrast(weights.W_U, part) / scale[part.answer_row, slot]

        def say(
            written: Float[Tensor, "batch *part kept d_model"],
            part: ProbeBatch = part,
            slot: Tensor = slot,
            direction: Tensor = direction,
        ) -> Tensor:
            written = written.movedim(-2, 1)[part.answer_row, slot].to(direction)
            said = torch.einsum("a...d,da->a...", written, direction)
            each = said.flatten(1).unbind(1) if said.ndim > 1 else (said,)
            rows = torch.stack([mean_by_row(value, part) for value in each], dim=1)
            return rows.unflatten(1, said.shape[1:]) if said.ndim > 1 else rows[:, 0]

        shift = torch.zeros_like(direction[0])
        if weights.b_U is not None:
            shift = _contrast(weights.b_U, part)
        logits = parts.logits[part.answer_row, slot].to(direction)
        total = _contrast(logits, part).diagonal()
        biases = parts.biases[None, :, None].expand(*parts.mlps.shape)
        found.append(
            [
                say(parts.heads),
                say(parts.mlps),
                say(biases),
                say(parts.embedding),
                mean_by_row(shift, part),
                mean_by_row(total, part),
            ]
        )
    return DirectAttribution(*(torch.cat(p).cpu() for p in zip(*found, strict=True)))


def _contrast(
    values: Float[Tensor, "*item token"], batch: ProbeBatch
) -> Float[Tensor, "*item answer"]:
    """`values` of each answer's token minus its distractor's, or minus the mean of all tokens."""
    if batch.distractor is None:
        return values[..., batch.answer] - values.mean(-1, keepdim=True)
    return values[..., batch.answer] - values[..., batch.distractor]


@torch.no_grad()
def logit_lens(
    backend: Backend, batch: ProbeBatch, metric: Metric = "log_prob_nats"
) -> Float[Tensor, "batch depth"]:
    """The metric that the model's final norm and unembedding make of each layer's output.

    Args:
        backend: The model.
        batch: Probe rows.
        metric: See `Metric`.

    Returns:
        Per row (on the CPU), of what enters layer 0, then after each layer; the last is the
        model's own value.

    Raises:
        ValueError: If the batch cannot give the metric.

    Source:
        nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    check_metric(metric, batch)
    depths = range(-1, backend.n_layers)
    found: list[Tensor] = []
    for part in chunks(batch, backend.device):
        positions, _ = answer_slots(part)
        streams, _ = residuals(backend, part, depths, metric)
        values = []
        for depth in depths:
            with probe_mode(backend.model):
                logits = backend.resume(backend.n_layers, streams[depth], part.tokens, positions)
            assert logits is not None
            values.append(score_logits(logits, part, metric)[0])
        found.append(torch.stack(values, 1).cpu())
    return torch.cat(found)
