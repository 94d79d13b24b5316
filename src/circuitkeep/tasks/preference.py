"""Direct preference optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from circuitkeep.capture import probe_mode
from circuitkeep.evals.capability import IGNORED
from circuitkeep.functional.policy import dpo_loss, preference_margin, token_log_probs
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.loading import Rows
from circuitkeep.tasks.rollouts import context_length

SIDES = ("chosen", "rejected")


class DPO(CausalLM):
    """Trains the model to prefer the chosen text of a pair, without a reward model.

    The reference is the model as it was given. What it says of every row is computed once, before
    training and before a checkpoint is read, the processes sharing the rows out, and kept beside
    the rows as two numbers each: there is no second model in memory. Lengths are not normalized.

    Logs ``train/loss_nats``, ``train/accuracy`` (pairs whose margin is above 0) and
    ``train/margin`` (in nats, see `circuitkeep.functional.policy.preference_margin`), the same
    under ``val/``.

    Args:
        model: Called as ``model(input_ids=, attention_mask=)``, returns an object with
            ``.logits``.
        beta: How strongly the reference holds the model back.
        lr: See `CausalLM`, as for all that follow.
        weight_decay: Of matrices.
        betas: Of AdamW.
        warmup_steps: Of the learning rate.
        schedule: Of the learning rate.
        total_steps: Of the schedule.

    Raises:
        ValueError: On construction for a `beta` out of range; when fitting starts, without a data
            module of pairs, or with texts longer than the model's context.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290.
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float = 0.1,
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        betas: Sequence[float] = (0.9, 0.999),
        warmup_steps: int = 0,
        schedule: str = "constant",
        total_steps: int | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay, betas, warmup_steps, schedule, total_steps)
        if not 0 < beta < float("inf"):
            raise ValueError(f"beta must be above 0, got {beta}")
        self.beta = beta
        self._references: list[tuple[Rows, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Ask the reference about every row, while the model still is the reference."""
        data: Any = getattr(self.trainer, "datamodule", None)
        for name in ("train_rows", "val_rows"):
            rows = getattr(data, name, None)
            if rows is None and name == "val_rows":
                continue
            if not isinstance(rows, Rows) or "chosen_ids" not in rows.columns:
                raise ValueError(
                    "DPO needs a data module with pairs of a chosen and a rejected text, so that "
                    "the reference can read them before training: data=preferences, or one whose "
                    "train_rows are circuitkeep.tasks.loading.Rows with chosen_ids, chosen_mask, "
                    "chosen_labels and the same of rejected"
                )
            rows.columns["reference"] = self._reference_of(rows, name, data.batch_size)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """The preference loss of the batch, in nats."""
        margin = self._margin(batch)
        loss = dpo_loss(margin, self.beta)
        for name, value in self._summary(margin, loss).items():
            self.log(f"train/{name}", value, prog_bar=True, batch_size=len(margin))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the same of held-out pairs."""
        margin = self._margin(batch)
        for name, value in self._summary(margin, dpo_loss(margin, self.beta)).items():
            self.log(f"val/{name}", value, prog_bar=True, batch_size=len(margin), sync_dist=True)

    def _margin(self, batch: Mapping[str, Any]) -> Float[Tensor, " row"]:
        return preference_margin(*self._text_log_probs(batch), *batch["reference"].unbind(1))

    def _summary(self, margin: Tensor, loss: Tensor) -> dict[str, Tensor]:
        return {
            "loss_nats": loss.detach(),
            "accuracy": (margin > 0).float().mean(),
            "margin": margin.detach().mean(),
        }

    def _text_log_probs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of the whole chosen and the whole rejected texts given their prompts, in nats."""
        ids, mask, labels = (_both(batch, kind) for kind in ("ids", "mask", "labels"))
        logits = self._logits({"input_ids": ids, "attention_mask": mask})
        learned = labels[:, 1:] != IGNORED
        each = token_log_probs(logits[:, :-1], labels[:, 1:].where(learned, 0))
        chosen, rejected = each.masked_fill(~learned, 0).sum(1).chunk(2)
        return chosen, rejected

    def _reference_of(self, rows: Rows, where: str, batch_size: int) -> Float[Tensor, "row 2"]:
        for asked, answer in self._references:
            if asked is rows:  # a second fit, or a validation after it: the model was trained since
                return answer
        self._check_room(rows, where)
        self._references.append((rows, self._ask(rows, batch_size)))
        return self._references[-1][1]

    @torch.no_grad()
    def _ask(self, rows: Rows, batch_size: int) -> Float[Tensor, "row 2"]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        # The trainer does so a little later anyway.
        self.model.to(self.device)
        shard = Subset(rows, range(rank, len(rows), world))
        loader = DataLoader(shard, batch_size, generator=torch.Generator())
        found = [torch.empty(0, 2)]
        with probe_mode(self.model), self.trainer.precision_plugin.forward_context():
            for batch in loader:
                batch = {name: column.to(self.device) for name, column in batch.items()}
                found.append(torch.stack(self._text_log_probs(batch), 1).float().cpu())
        parts = [torch.cat(found)]
        if world > 1:
            parts: list[Any] = [None] * world
            torch.distributed.all_gather_object(parts, torch.cat(found))
        reference = torch.empty(len(rows), 2)
        for start, part in enumerate(parts):
            reference[start::world] = part
        return reference

    def _check_room(self, rows: Rows, where: str) -> None:
        context = context_length(self.model)
        for side in SIDES:
            lengths = rows.columns[f"{side}_mask"].sum(1)
            if context is not None and int(lengths.max()) > context:
                row = int(lengths.argmax())
                raise ValueError(
                    f"the {side} text in row {row} of {where} has {int(lengths[row])} tokens with "
                    f"its prompt, more than the model's context of {context}; lower "
                    "data.max_length"
                )


def _both(batch: Mapping[str, Any], kind: str) -> Tensor:
    """The columns of both sides as rows of one batch, padded on the right to one width."""
    sides = [batch[f"{side}_{kind}"] for side in SIDES]
    width = max(side.shape[1] for side in sides)
    fill = IGNORED if kind == "labels" else 0
    return torch.cat(
        [nn.functional.pad(side, (0, width - side.shape[1]), value=fill) for side in sides]
    )
