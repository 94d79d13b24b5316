"""Capability beside circuits: the same evaluations before, during and after the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import nn

from circuitkeep.callbacks.periodic import Periodic
from circuitkeep.capture import find_model
from circuitkeep.evals.capability import IGNORED, capability_sums, summarize_capability
from circuitkeep.evals.harness import Harness

Batches = Iterable[Mapping[str, Any]]


class CapabilityEvals(Periodic):
    """Evaluates the model in training on the validation rows of some data sets, and on tasks.

    Logs ``capability/<name>/loss_nats``, ``/perplexity`` and, where the data mark answers,
    ``/accuracy``; of a task of lm-evaluation-harness ``capability/<task>/<metric>`` and, where
    there is one, ``<metric>_stderr``. The step of an entry is the number of optimizer steps that
    the weights have had: 0 is the model as it came.

    Several processes take turns at the batches and add up their sums, so the figures do not
    depend on how many there are. Tasks are asked whole in each of them, as the collectives of a
    sharded model need, and the first one tells the others its figures.

    Args:
        datasets: By name, what to evaluate on: a data module, whose validation loader is taken,
            or the batches themselves: a list, or a loader that can be iterated again, in the same
            order in every process.
        every_n_steps: Evaluate after each so many optimizer steps; None not to.
        at_validation: Evaluate when the trainer has validated.
        max_batches: Of each data set, the first so many; None for all.
        model: Attribute path of the model in the LightningModule, if it holds several.
        harness: The tasks; None for none.
        tokenizer: The model's, which tasks need.

    Attributes:
        latest: The values last logged, by data set or task; of data sets ``tokens`` beside them.
    """

    def __init__(
        self,
        datasets: Mapping[str, LightningDataModule | Batches],
        every_n_steps: int | None = None,
        at_validation: bool = True,
        max_batches: int | None = None,
        model: str | None = None,
        harness: Harness | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__(every_n_steps, at_validation)
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches must be at least 1, or null; got {max_batches}")
        if harness is not None and (both := set(datasets) & {*harness.names}):
            raise ValueError(f"{min(both)!r} is the name of a data set and of a task; rename one")
        self.datasets = dict(datasets)
        self.max_batches = max_batches
        self.model = model
        self.harness, self.tokenizer = harness, tokenizer
        self.latest: dict[str, dict[str, float]] = {}
        self._batches: dict[str, Batches] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the data once, so that a mistake in it shows before the training starts.

        Raises:
            ValueError: If the LightningModule holds no language model, or several and `model`
                does not say which, a data set has no validation rows, or a task cannot be asked.
        """
        if stage != "fit":
            return
        find_model(pl_module, self.model)
        for name, data in self.datasets.items():
            if not isinstance(data, LightningDataModule):
                self._batches[name] = data
                continue
            if trainer.local_rank == 0:
                data.prepare_data()
            trainer.strategy.barrier("capability data")
            data.setup("validate")
            batches = data.val_dataloader()
            if isinstance(batches, (list, tuple, Mapping)):
                raise ValueError(
                    f"the data set {name!r} must have one validation loader to be evaluated on"
                )
            self._batches[name] = batches
        if self.harness is not None:
            # One process per machine fetches the data, the others find it there.
            if trainer.local_rank == 0:
                self.harness.prepare(self.tokenizer)
            trainer.strategy.barrier("capability tasks")
            self.harness.prepare(self.tokenizer)

    def state_dict(self) -> dict[str, Any]:
        """What was measured last, and when."""
        return {"latest": self.latest, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self.latest = state_dict["latest"]
        self._last_step = state_dict["last_step"]

    def measure(self, trainer: Trainer, pl_module: LightningModule, step: int) -> dict[str, float]:
        """Evaluate on every data set and task; see `Periodic`."""
        model = find_model(pl_module, self.model)
        logged = {}
        for name, batches in self._batches.items():
            share = share_of_batches(
                batches, trainer.global_rank, trainer.world_size, self.max_batches
            )
            with trainer.precision_plugin.forward_context():
                sums = capability_sums(model, share)
            values = summarize_capability(trainer.strategy.reduce(sums, reduce_op="sum"))
            self.latest[name] = values
            for quantity in ("loss_nats", "perplexity", "accuracy"):
                if quantity in values:
                    logged[f"capability/{name}/{quantity}"] = values[quantity]
        return logged | self._ask(trainer, model)

    def _ask(self, trainer: Trainer, model: nn.Module) -> dict[str, float]:
        if self.harness is None:
            return {}
        with trainer.precision_plugin.forward_context():
            figures = self.harness.evaluate(model, self.tokenizer)
        figures = trainer.strategy.broadcast(figures)
        self.latest |= figures
        return {
            f"capability/{task}/{metric}": value
            for task, values in figures.items()
            for metric, value in values.items()
        }


def share_of_batches(
    batches: Batches, rank: int, ranks: int, max_batches: int | None = None
) -> Iterator[Mapping[str, Any]]:
    """The batches that process `rank` of `ranks` evaluates: every `ranks`-th one.

    All processes get equally many, as the collectives of a sharded model need: a process that
    would run out first gets its round's first batch once more, with no label left in it.
    """
    turn: list[Mapping[str, Any]] = []
    for number, batch in enumerate(batches):
        if number == max_batches:
            break
        turn.append(batch)
        if len(turn) == ranks:
            yield turn[rank]
            turn = []
    if turn:
        first = turn[0]
        unlabelled = {**first, "labels": torch.full_like(first["labels"], IGNORED)}
        yield turn[rank] if rank < len(turn) else unlabelled
