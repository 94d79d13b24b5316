"""A training step, plain and with what people add to it today to keep a model as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from circuitkeep.circuits import Head


@dataclass(frozen=True)
class Guarded:
    """A setting of circuitkeep, and what is claimed of it.

    Attributes:
        about: In a sentence.
        settings: Arguments of `CircuitPreservation`.
        claim: The most that its step is said to take, as a multiple of a plain one.
        patterns_only: Whether the penalty is on patterns alone, so that the pass can stop early.
        length: Tokens per probe row; None for what the suite says.
        every_n: Steps from one that is due to the next; a due one is timed, and shared out.
        budget: If interval and rows are chosen by measured times, what the penalty may add.
    """

    about: str
    settings: Mapping[str, Any]
    claim: float
    patterns_only: bool = False
    length: int | None = None
    every_n: int = 1
    budget: float | None = None


GUARDED: Mapping[str, Guarded] = {
    "guard": Guarded("the defaults: patterns and behaviour on 1 row, every step", {}, 1.05),
    "guard, budget 3%": Guarded(
        "patterns and behaviour, on at most 8 rows, with budget=0.03",
        {"rows_per_step": 8},
        1.03,
        budget=0.03,
    ),
    "guard, patterns 8x64": Guarded(
        "patterns alone on 8 rows of 64 tokens, every step, stopping after the last guarded layer",
        {"rows_per_step": 8, "pool_rows": 32},
        1.10,
        patterns_only=True,
        length=64,
    ),
    "guard, both 8x64": Guarded(
        "patterns and behaviour on 8 rows of 64 tokens, every step",
        {"rows_per_step": 8, "pool_rows": 32},
        1.30,
        length=64,
    ),
}


class TrainingStep(LightningModule):
    """Next-token prediction; subclasses add a regularizer.

    The learning rate is 0, so that every contender computes the same task loss at every step; an
    optimizer step costs the same with any.
    """

    about = "forward, backward and AdamW, nothing else"

    def __init__(self, model: Any, tokens: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokens
        self.losses: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The task's loss and the regularizer's."""
        logits, more = self.run(batch)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        self.losses.append(loss.detach())
        return loss if more is None else loss + more

    def run(self, batch: Int[Tensor, "row pos"]) -> tuple[Float[Tensor, "row pos vocab"], Any]:
        """The logits, and what is added to the loss."""
        return self.model(input_ids=batch, use_cache=False).logits, None

    def train_dataloader(self) -> DataLoader:
        """The batches of tokens, one per step."""
        batches: Any = self.tokens  # indexed by step
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as most people train."""
        return torch.optim.AdamW(self.model.parameters(), lr=0.0)


class ReferenceKL(TrainingStep):
    """KL to a frozen copy, on the training batch."""

    about = (
        "a frozen copy runs the training batch too, and the KL to it is estimated at its tokens "
        "(the estimator k3 of Schulman 2020, as TRL's GRPO does)"
    )

    def __init__(self, model: Any, tokens: Sequence[Tensor]) -> None:
        super().__init__(model, tokens)
        self.base = [copy.deepcopy(model).eval().requires_grad_(False)]  # in a list: no submodule

    def run(self, batch: Tensor) -> tuple[Tensor, Any]:
        """See `TrainingStep.run`."""
        logits, _ = super().run(batch)
        with torch.no_grad():
            before = self.base[0](input_ids=batch, use_cache=False).logits
        one, other = (
            value[:, :-1].float().log_softmax(-1).gather(2, batch[:, 1:, None])
            for value in (logits, before)
        )
        difference = other - one
        return logits, (difference.exp() - difference - 1).mean()


class L2SP(TrainingStep):
    """Squared distance of all weights from the start."""

    about = "squared distance of all weights from those at the start (Li et al. 2018, L2-SP)"

    def __init__(self, model: Any, tokens: Sequence[Tensor]) -> None:
        super().__init__(model, tokens)
        self.start = [value.detach().clone() for value in model.parameters()]

    def run(self, batch: Tensor) -> tuple[Tensor, Any]:
        """See `TrainingStep.run`."""
        logits, _ = super().run(batch)
        moved = zip(self.model.parameters(), self.start, strict=True)
        return logits, torch.stack([(now - then).square().sum() for now, then in moved]).sum()


class EWC(L2SP):
    """The same, weighted by the diagonal of the Fisher information."""

    about = (
        "squared distance of all weights, weighted by a diagonal Fisher information that is at "
        "hand (Kirkpatrick et al. 2017, EWC)"
    )

    def __init__(self, model: Any, tokens: Sequence[Tensor]) -> None:
        super().__init__(model, tokens)
        self.fisher = [value.square() for value in self.start]  # as large as the true one

    def run(self, batch: Tensor) -> tuple[Tensor, Any]:
        """See `TrainingStep.run`."""
        logits, _ = TrainingStep.run(self, batch)
        terms = zip(self.model.parameters(), self.start, self.fisher, strict=True)
        costs = [(fisher * (now - then).square()).sum() for now, then, fisher in terms]
        return logits, torch.stack(costs).sum()


class AttentionMSE(TrainingStep):
    """Squared error of the guarded heads' attention maps, by ``output_attentions``."""

    about = (
        "both the model and a frozen copy run the training batch eagerly with output_attentions, "
        "and the guarded heads' maps are compared"
    )
    heads: Sequence[Head] = ()

    def __init__(self, model: Any, tokens: Sequence[Tensor], heads: Sequence[Head]) -> None:
        super().__init__(model, tokens)
        self.heads = heads
        self.base = [copy.deepcopy(model).eval().requires_grad_(False)]

    def run(self, batch: Tensor) -> tuple[Tensor, Any]:
        """See `TrainingStep.run`."""
        for one in (self.model, self.base[0]):
            one.set_attn_implementation("eager")
        try:
            output = self.model(input_ids=batch, use_cache=False, output_attentions=True)
            with torch.no_grad():
                base = self.base[0](input_ids=batch, use_cache=False, output_attentions=True)
        finally:
            self.model.set_attn_implementation("sdpa")
        now, then = (
            torch.stack([one.attentions[head.layer][:, head.index] for head in self.heads])
            for one in (output, base)
        )
        return output.logits, (now - then).square().mean()


class BridgeHooks(TrainingStep):
    """The patterns of the guarded heads on probe rows, by TransformerLens hooks."""

    about = (
        "a TransformerBridge is trained, and run_with_hooks takes the guarded heads' patterns on 8 "
        "probe rows of 64 tokens, every step"
    )

    def __init__(
        self,
        bridge: nn.Module,
        tokens: Sequence[Tensor],
        probe: Int[Tensor, "probe_row probe_pos"],
        heads: Sequence[Head],
    ) -> None:
        super().__init__(bridge, tokens)
        self.bridge: Any = bridge
        self.heads, self.probe = heads, probe
        with torch.no_grad():
            self.before = self._patterns()

    def run(self, batch: Tensor) -> tuple[Tensor, Any]:
        """See `TrainingStep.run`."""
        return self.bridge(batch), (self._patterns() - self.before).square().mean()

    def _patterns(self) -> Float[Tensor, "head probe_row query key"]:
        found: dict[Head, Tensor] = {}

        def keep(pattern: Tensor, hook: Any) -> None:
            layer = int(hook.name.split(".")[1])
            found.update({h: pattern[:, h.index] for h in self.heads if h.layer == layer})

        layers = sorted({head.layer for head in self.heads})
        hooks = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in layers]
        self.bridge.run_with_hooks(self.probe.to(self.bridge.cfg.device), fwd_hooks=hooks)
        return torch.stack([found[head] for head in self.heads])


RIVALS: Mapping[str, type[Any]] = {
    "KL to a reference": ReferenceKL,
    "L2-SP": L2SP,
    "EWC": EWC,
    "attention MSE": AttentionMSE,
    "bridge hooks": BridgeHooks,
}
