"""How well a transcoder stands for a model's MLPs, on tokens it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Edits, probe_mode
from circuitkeep.transcoders.harvest import run
from circuitkeep.transcoders.replacement import check_fits, replaced
from circuitkeep.transcoders.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Quality:
    r"""What was measured; per layer, where there is a tuple.

    Attributes:
        tokens: On how many.
        explained_variance: :math:`1 - \sum_t \lVert y_t - \hat y_t \rVert^2 / \sum_t \lVert y_t -
            \bar y \rVert^2` of the MLP's outputs, features reading the model's own stream.
        active: Features active per token (L0).
        dead: Share of the features that are active at none of the tokens.
        density: Per feature, at what share of the tokens it is active.
        loss_nats: Next-token loss of the model.
        replaced_nats: With every MLP replaced at once, errors going on from layer to layer.
        mean_ablated_nats: With every MLP writing its mean over the tokens.
        zero_ablated_nats: With every MLP writing nothing.
    """

    tokens: int
    explained_variance: tuple[float, ...]
    active: tuple[float, ...]
    dead: tuple[float, ...]
    density: Float[Tensor, "layer feature"]
    loss_nats: float
    replaced_nats: float
    mean_ablated_nats: float
    zero_ablated_nats: float

    @property
    def recovered(self) -> float:
        """The share of what mean ablation costs that the transcoder makes good."""
        return self._recovered(self.mean_ablated_nats)

    @property
    def recovered_of_zero(self) -> float:
        """The share of what zero ablation costs that the transcoder makes good."""
        return self._recovered(self.zero_ablated_nats)

    def _recovered(self, floor: float) -> float:
        return 1 - (self.replaced_nats - self.loss_nats) / (floor - self.loss_nats)

    def summary(self) -> dict[str, Any]:
        """Everything but the densities, and what follows from it, in types for JSON."""
        layers = len(self.active)
        return {
            "tokens": self.tokens,
            "explained_variance": list(self.explained_variance),
            "mean_explained_variance": sum(self.explained_variance) / layers,
            "active_per_token": list(self.active),
            "mean_active_per_token": sum(self.active) / layers,
            "dead": list(self.dead),
            "mean_dead": sum(self.dead) / layers,
            "loss_nats": self.loss_nats,
            "replaced_nats": self.replaced_nats,
            "mean_ablated_nats": self.mean_ablated_nats,
            "zero_ablated_nats": self.zero_ablated_nats,
            "recovered": self.recovered,
            "recovered_of_zero": self.recovered_of_zero,
            "density": self.histogram(),
        }

    def histogram(self) -> dict[str, list]:
        """How many features of each layer have which density, in steps of half a decade.

        Returns:
            ``from``: the lower ends of the bins, 0 for the features that are never active; each
            reaches to the next, the last to 1. ``features``: counts, layer by bin.
        """
        lowest = min(-1, -len(str(self.tokens)))
        ends = [10 ** (half / 2) for half in range(2 * lowest, 0)]
        bounds = torch.tensor(ends, dtype=self.density.dtype)
        which = torch.bucketize(self.density, bounds, right=True)
        counts = [torch.bincount(row, minlength=len(ends) + 1).tolist() for row in which]
        return {"from": [0.0, *ends], "features": counts}


@torch.no_grad()
def measure_quality(
    backend: Backend,
    transcoder: CrossLayerTranscoder,
    tokens: Int[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    rows_at_once: int = 16,
    skip_first: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Measure a transcoder on rows of tokens.

    Args:
        backend: The model.
        transcoder: In its units.
        tokens: Right-padded.
        mask: Which of them are real.
        rows_at_once: Rows per forward pass.
        skip_first: Positions at the start of each row that are not looked at, and at which no
            MLP is replaced or ablated.
        progress: Told how many rows are done, of how many.

    Raises:
        ValueError: If the transcoder does not fit the model, or there is no token.
    """
    check_fits(backend, transcoder)
    looked = mask.clone()
    looked[:, :skip_first] = False
    if not looked.any():
        raise ValueError("no token is left to measure on; use more rows, or longer ones")
    parts = [slice(i, i + rows_at_once) for i in range(0, len(tokens), rows_at_once)]
    sums = _Sums(transcoder)
    nats = torch.zeros(4, dtype=torch.float64)
    predicted = 0
    for number, part in enumerate(parts):
        sums.add(*run(backend, tokens[part]), looked[part])
        progress(number * rows_at_once, 4 * len(tokens))
    means = sums.mean.to(transcoder.b_dec)
    positions = torch.arange(tokens.shape[1]) >= skip_first

    def ablated(values: Tensor) -> Edits:
        def write(value: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda own: torch.where(positions.to(own.device)[:, None], value.to(own), own)

        return Edits(mlp={layer: write(value) for layer, value in enumerate(values)})

    models: list[Callable[[], AbstractContextManager]] = [
        nullcontext,
        lambda: replaced(backend, transcoder, positions=positions),
        lambda: backend.edit(ablated(means)),
        lambda: backend.edit(ablated(torch.zeros_like(means))),
    ]
    for number, part in enumerate(parts):
        for place, model in enumerate(models):
            with model():
                nats[place] += _nats(backend, tokens[part], mask[part])
        predicted += int(mask[part][:, 1:].sum())
        progress(len(tokens) + 3 * min(len(tokens), (number + 1) * rows_at_once), 4 * len(tokens))
    loss, replaced_nats, mean_ablated, zero_ablated = (nats / predicted).tolist()
    return Quality(
        sums.tokens,
        *sums.per_layer(),
        sums.fired.cpu() / sums.tokens,
        loss,
        replaced_nats,
        mean_ablated,
        zero_ablated,
    )


def _nats(backend: Backend, tokens: Tensor, mask: Tensor) -> float:
    """The summed next-token loss."""
    tokens, mask = tokens.to(backend.device), mask.to(backend.device)
    with probe_mode(backend.model):
        logits = backend.forward(tokens)
    assert logits is not None
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return float(losses.double() @ mask[:, 1:].flatten().double())


class _Sums:
    """What is added up over tokens, in fp64, for the figures of the layers."""

    def __init__(self, transcoder: CrossLayerTranscoder) -> None:
        self.transcoder = transcoder
        shape = transcoder.threshold.shape
        self.tokens = 0
        self.outputs = self.squares = self.errors = torch.zeros(())
        self.fired = torch.zeros(shape, dtype=torch.float64, device=transcoder.W_enc.device)

    @property
    def mean(self) -> Float[Tensor, "layer d_model"]:
        """Of what MLPs write."""
        return self.outputs / self.tokens

    def add(
        self,
        inputs: Float[Tensor, "layer row pos d_model"],
        outputs: Float[Tensor, "layer row pos d_model"],
        mask: Bool[Tensor, "row pos"],
    ) -> None:
        """Count some rows."""
        mask = mask.to(inputs.device)
        inputs, outputs = inputs[:, mask], outputs[:, mask]
        active = self.transcoder.encode(inputs.to(self.transcoder.W_enc))
        errors = outputs - self.transcoder.decode(active)
        self.tokens += inputs.shape[1]
        self.outputs = self.outputs + outputs.double().sum(1).cpu()
        self.squares = self.squares + outputs.double().square().sum((1, 2)).cpu()
        self.errors = self.errors + errors.double().square().sum((1, 2)).cpu()
        self.fired += (active > 0).double().sum(1)

    def per_layer(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """Explained variance, active features per token, share of dead features."""
        variance = self.squares - self.tokens * self.mean.square().sum(-1)
        explained = 1 - self.errors / variance
        active = self.fired.sum(1) / self.tokens
        dead = (self.fired == 0).double().mean(1)
        one, two, three = (tuple(values.tolist()) for values in (explained, active, dead))
        return one, two, three
