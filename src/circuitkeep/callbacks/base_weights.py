"""Keeping the base model's weights beside a training, so that a resumed one still has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from circuitkeep.capture import find_model
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.files import replacing

_FORMAT = "1"


def refuse_shards(trainer: Any, who: str) -> None:
    """Refuse strategies that leave no process with whole weights.

    Raises:
        ValueError: Naming the strategy and the remedy.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"{who} compares whole weights with those of the base, which "
            f"{type(strategy).__name__} does not leave in one place; train by DDP, or on one device"
        )


class KeepsBase(Callback):
    """A callback that compares the model in training with the base, the model as it came.

    The base is what the model is when a fit starts. It lies in a file under the trainer's root
    directory; a resumed fit reads it from there.

    Args:
        weight: Of what is added to the loss; with 0 nothing is done at all.
        model: Attribute path of the model in the LightningModule, if it holds several.
        reference: Where the base is kept, if not under the trainer's root directory.

    Raises:
        ValueError: On construction for a weight below 0; at the start for a strategy that shards
            weights, or a file that holds something else.
        FileNotFoundError: If a fit is resumed and the file is gone.
    """

    name: str
    """In log keys and file names."""

    def __init__(
        self,
        weight: float,
        model: str | None = None,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{type(self).__name__}: weight must be 0 or more, got {weight}")
        self.weight = float(weight)
        self.model = model
        self.reference_path = None if reference is None else Path(reference)
        self._kept: dict[str, str] = {}
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Where the base lies, and whose it is."""
        return dict(self._kept)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the base of the run that was stopped, unless another path is given."""
        self._kept = dict(state_dict)
        self._resumed = bool(self._kept)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be right."""
        if stage == "fit" and self.weight > 0:
            refuse_shards(trainer, type(self).__name__)

    def more(self, trainer: Trainer, model: nn.Module) -> dict[str, Tensor]:
        """What is kept beside the weights; called once, in the first process, with the base."""
        return {}

    def base(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
        """``base.NAME`` of every weight, and what `more` gave; the same in every process."""
        model = find_model(module, self.model)
        if not self._resumed:
            whose = fingerprint_model(model)
            name = f"{self.name}-{whose[:12]}.safetensors"
            path = self.reference_path or Path(trainer.default_root_dir) / "references" / name
            self._kept = {"path": str(path.absolute()), "model": whose}
        found: dict[str, Tensor] | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self._read() if self._resumed else self._make(trainer, model)
            except (ValueError, OSError) as error:
                found = error
        # One process for all: other machines need not see the file, and what is measured is the
        # same to the last bit.
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        assert found is not None
        self._resumed = False
        device = next(model.parameters()).device
        _check_shapes(found, model, self._kept["path"])
        return {name: value.to(device) for name, value in found.items()}

    def _make(self, trainer: Trainer, model: nn.Module) -> dict[str, Tensor]:
        weights = {f"base.{n}": p.detach().clone() for n, p in model.named_parameters()}
        weights |= self.more(trainer, model)
        header = json.dumps({"format": _FORMAT, "model": self._kept["model"]})
        on_cpu = {name: value.contiguous().cpu() for name, value in weights.items()}
        with replacing(self._kept["path"]) as temporary:
            try:
                save_file(on_cpu, temporary, metadata={"circuitkeep": header})
            except SafetensorError as error:  # which is no OSError, even where the disk is full
                raise OSError(f"the base was not written to {self._kept['path']}: {error}") from (
                    error
                )
        return weights

    def _read(self) -> dict[str, Tensor]:
        path = self.reference_path or Path(self._kept["path"])
        if not path.is_file():
            raise FileNotFoundError(
                f"{type(self).__name__}: the base weights of the resumed run are not at {path}; "
                "name where they are by reference=..."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("circuitkeep", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} holds no base weights: {error}") from error
        if header != {"format": _FORMAT, "model": self._kept["model"]}:
            raise ValueError(
                f"the weights at {path} are not those the resumed run began with; name where they "
                "are by reference=..."
            )
        return tensors


def _check_shapes(found: Mapping[str, Tensor], model: nn.Module, path: str) -> None:
    for name, parameter in model.named_parameters():
        value = found.get(f"base.{name}")
        if value is None or value.shape != parameter.shape:
            raise ValueError(f"the base weights at {path} do not fit the model: {name} differs")


@torch.no_grad()
def restore(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model the weights that `KeepsBase.base` returned."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[f"base.{name}"])
