"""Training a transcoder on the activations of a frozen model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from circuitkeep.circuits import did_you_mean
from circuitkeep.tasks.finite import FiniteLossModule
from circuitkeep.tasks.language_modelling import SCHEDULES, learning_rate_factor
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig
from circuitkeep.transcoders.activations import above, jump_relu, largest, top_k
from circuitkeep.transcoders.harvest import Harvest
from circuitkeep.transcoders.loss import (
    below_threshold,
    decoder_norms,
    from_dead,
    reconstruction,
    sparsity,
)
from circuitkeep.transcoders.normalization import Scales, folded


class TranscoderTask(FiniteLossModule):
    """Trains a transcoder on batches of `circuitkeep.transcoders.harvest.Harvest`.

    The activations are scaled to mean 0 and variance 1 per layer; `trained` gives the transcoder in
    the model's units. Logs ``train/reconstruction`` (the layers' unexplained variance, summed),
    ``train/active`` (features active per token and layer), ``train/dead`` (share of features), the
    sum that is minimized as ``train/loss``, and for held-out tokens ``val/explained_variance`` and
    ``val/active``, means over layers.

    Over several processes the gradient is that of one process with all their tokens, given
    batches of one size.

    Args:
        n_layers: Of the model.
        d_model: Width of its residual stream.
        n_features: See `circuitkeep.transcoders.TranscoderConfig`, as for the next four.
        activation: As above.
        k: As above; of no meaning to jumprelu and relu.
        cross_layer: As above.
        reads: As above.
        sparsity: Weight of the tanh penalty (jumprelu and relu).
        sparsity_warmup: Share of all steps over which that weight rises linearly from 0.
        steepness: Of the tanh.
        bandwidth: Of the slope that stands for the jump's gradient (jumprelu).
        threshold: Of every feature at first (jumprelu).
        wake: Weight of what features lack to their thresholds (jumprelu and relu).
        revive: Weight of what dead features make of the error (topk and batchtopk).
        revive_k: How many dead features may be active per layer and token for that.
        dead_after: Tokens without activity after which a feature counts as dead.
        lr: Peak learning rate of Adam.
        betas: Of Adam.
        warmup_steps: Steps over which the learning rate rises linearly to `lr`.
        schedule: What it does after that: constant, or linear or cosine down to 0.
        total_steps: Steps at which it arrives there; None takes the trainer's.
        seed: Of the weights at first.
    """

    input_mean: Tensor
    input_rms: Tensor
    output_mean: Tensor
    output_rms: Tensor
    idle_tokens: Tensor
    cut: Tensor

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_features: int = 512,
        activation: str = "batchtopk",
        k: int | None = 14,
        cross_layer: bool = True,
        reads: str = "stream",
        sparsity: float = 2e-3,
        sparsity_warmup: float = 1.0,
        steepness: float = 4.0,
        bandwidth: float = 1.0,
        threshold: float = 0.1,
        wake: float = 3e-5,
        revive: float = 0.0,
        revive_k: int = 32,
        dead_after: int = 100_000,
        lr: float = 2e-3,
        betas: Sequence[float] = (0.9, 0.999),
        warmup_steps: int = 50,
        schedule: str = "linear",
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}" + did_you_mean(schedule, SCHEDULES))
        for name, value in (("bandwidth", bandwidth), ("threshold", threshold)):
            if value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        kept = k if "topk" in activation else None
        config = TranscoderConfig(
            n_layers, d_model, n_features, activation, kept, cross_layer, reads
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transcoder = CrossLayerTranscoder(config)
            for decoders in self.transcoder.W_dec:
                # Of one length, far below that of what they are to write.
                size = 0.1 / math.sqrt(decoders[0].numel())
                nn.init.normal_(decoders, std=size)
        self.transcoder.threshold.requires_grad_(False)
        self.log_threshold = None
        if activation == "jumprelu":
            start = torch.full_like(self.transcoder.threshold, math.log(threshold))
            self.log_threshold = nn.Parameter(start)
        self.sparsity, self.sparsity_warmup, self.steepness = sparsity, sparsity_warmup, steepness
        self.bandwidth, self.wake = bandwidth, wake
        self.revive, self.revive_k, self.dead_after = revive, revive_k, dead_after
        self.lr, self.betas, self.schedule = lr, betas, schedule
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        for name, shape in (
            ("input_mean", (n_layers, d_model)),
            ("input_rms", (n_layers,)),
            ("output_mean", (n_layers, d_model)),
            ("output_rms", (n_layers,)),
        ):
            self.register_buffer(name, torch.full(shape, math.nan))
        self.register_buffer("idle_tokens", torch.zeros(n_layers, n_features, dtype=torch.long))
        self.register_buffer("cut", torch.full((n_layers,), math.nan))

    @property
    def scales(self) -> Scales:
        """Of the activations; nan until they are known."""
        return Scales(self.input_mean, self.input_rms, self.output_mean, self.output_rms)

    @scales.setter
    def scales(self, scales: Scales) -> None:
        for name, value in vars(scales).items():
            getattr(self, name).copy_(value)

    def trained(self) -> CrossLayerTranscoder:
        """The transcoder in the model's units, as it is now, on the CPU."""
        own = self.transcoder
        with torch.no_grad():
            own.threshold.copy_(self._threshold())
        return folded(own, self.scales).cpu()

    def setup(self, stage: str | None = None) -> None:
        """Take the scales from the data; a run that is resumed has them in its checkpoint."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and self.input_rms.isnan().any():
            self.scales = data.scales(self.transcoder.config.reads == "normalized")

    def on_train_start(self) -> None:
        """Refuse to train on activations of unknown scale."""
        if self.input_rms.isnan().any():
            raise ValueError(
                "the scales of the activations are not known: train on an ActivationData, or set "
                "the task's `scales`"
            )

    def training_step(self, batch: Harvest, batch_idx: int) -> Float[Tensor, ""]:
        """Reconstruction, what keeps it sparse, and what keeps features alive."""
        inputs, outputs = self._scaled(batch)
        pre = self._pre(inputs)
        norms = decoder_norms(self.transcoder.W_dec)
        active = self._activate(pre, norms)
        error = outputs - self.transcoder.decode(active)
        squared = loss = reconstruction(error)
        if self.transcoder.config.k is None:
            threshold = self._threshold()
            rising = min(1.0, (self.global_step + 1) / max(1.0, self.sparsity_warmup * self._end()))
            loss = loss + rising * self.sparsity * sparsity(active, norms, self.steepness)
            if self.wake:
                loss = loss + self.wake * below_threshold(pre, threshold, norms)
        elif self.revive:
            dead = self.idle_tokens >= self.dead_after
            loss = loss + self.revive * from_dead(self.transcoder, pre, error, dead, self.revive_k)
        self._count(active)
        self.log("train/loss", loss.detach(), sync_dist=True)
        self.log("train/reconstruction", squared.detach(), prog_bar=True, sync_dist=True)
        self.log("train/active", _active(active), prog_bar=True, sync_dist=True)
        self.log("train/dead", (self.idle_tokens >= self.dead_after).float().mean())
        return loss

    def validation_step(self, batch: Harvest, batch_idx: int) -> None:
        """Explained variance and activity, as at inference."""
        inputs, outputs = self._scaled(batch)
        pre = self._pre(inputs)
        norms = decoder_norms(self.transcoder.W_dec)
        if self.transcoder.config.activation == "batchtopk":
            active = above(pre, norms[:, None], self.cut)
        else:
            active = self._activate(pre, norms)
        # The outputs' variance is 1, by their scales.
        explained = 1 - reconstruction(outputs - self.transcoder.decode(active)) / len(outputs)
        size = len(batch.inputs)
        self.log("val/explained_variance", explained, batch_size=size, sync_dist=True)
        self.log("val/active", _active(active), batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam with the schedule of the arguments, advanced every step."""
        optimizer = torch.optim.Adam(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
        )
        total = None if self.schedule == "constant" else int(self._end())

        def factor(step: int) -> float:
            return learning_rate_factor(step, self.schedule, self.warmup_steps, total)

        scheduler = LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _end(self) -> float:
        end = self.total_steps or self.trainer.estimated_stepping_batches
        if math.isinf(end):
            raise ValueError(
                "the training has no end by which to lower the learning rate and raise the "
                "sparsity; set max_steps of the trainer, or total_steps of the task"
            )
        return float(end)

    def _threshold(self) -> Float[Tensor, "layer feature"]:
        own = self.transcoder
        if self.log_threshold is not None:
            return self.log_threshold.exp()
        if own.config.activation == "batchtopk" and not self.cut.isnan().any():
            # What a pre-activation is worth is how much is written.
            norms = decoder_norms(own.W_dec).detach()
            return self.cut[:, None] / norms.clamp(min=1e-12)
        return torch.zeros_like(own.threshold)

    def _scaled(self, batch: Harvest) -> tuple[Tensor, Tensor]:
        """Inputs and outputs, layers first, of mean 0 and variance 1."""
        inputs, outputs = (values.float().transpose(0, 1) for values in batch)
        read = inputs * self.transcoder.input_scale(inputs)[..., None]
        read = (read - self.input_mean[:, None]) / self.input_rms[:, None, None]
        written = (outputs - self.output_mean[:, None]) / self.output_rms[:, None, None]
        return read, written

    def _pre(self, read: Float[Tensor, "layer token d_model"]) -> Tensor:
        # Not the transcoder's own: what it reads has been scaled after the division by its size.
        own = self.transcoder
        return own.b_enc[:, None] + read @ own.W_enc.transpose(1, 2)

    def _activate(self, pre: Tensor, norms: Tensor) -> Tensor:
        config, worth = self.transcoder.config, norms.detach()[:, None]
        if config.activation == "relu":
            return torch.relu(pre)
        if config.activation == "jumprelu":
            return jump_relu(pre, self._threshold()[:, None], self.bandwidth)
        assert config.k is not None
        if config.activation == "topk":
            return top_k(pre, worth, config.k)
        least = self._least(pre.detach() * worth, config.k)
        if self.training:
            old = torch.where(self.cut.isnan(), least, self.cut)
            self.cut.copy_(torch.lerp(old, least, 0.1))
        return above(pre, worth, least)

    def _least(self, scores: Tensor, k: int) -> Float[Tensor, " layer"]:
        """The least score among the best k per token of all processes' tokens together."""
        tokens = scores.shape[1] * self._processes()
        best = largest(scores.float(), k * tokens)
        if self._processes() > 1:
            best = largest(self._from_all(best).transpose(0, 1), k * tokens)
        return best.min(dim=1).values.clamp(min=0)

    @torch.no_grad()
    def _count(self, active: Tensor) -> None:
        fired = (active > 0).any(1)
        if self._processes() > 1:
            fired = self._from_all(fired).any(0)
        tokens = active.shape[1] * self._processes()
        self.idle_tokens.copy_((self.idle_tokens + tokens).masked_fill(fired, 0))

    def _from_all(self, value: Tensor) -> Tensor:
        """The values of all processes, of one shape."""
        found = [torch.empty_like(value) for _ in range(self._processes())]
        torch.distributed.all_gather(found, value.contiguous())
        return torch.stack(found)

    def _processes(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size


def _active(activations: Float[Tensor, "layer token feature"]) -> Float[Tensor, ""]:
    return (activations.detach() > 0).sum(-1).float().mean()
