"""`LoRA`: training thin adapters instead of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from circuitkeep.callbacks.base_weights import refuse_shards
from circuitkeep.capture import find_model


class LoRA(Callback):
    """Train low-rank adapters (peft's) on linear layers, and nothing else.

    They are put in before the optimizer is made, and merged into the weights when the fit ends, so
    that the model is again what it was, with other weights. Lightning's own checkpoints, made in
    between, hold weights and adapters apart: resume from them with the same callback, and compare
    the merged model.

    Args:
        r: Rank.
        alpha: Adapters are scaled by ``alpha / r``.
        dropout: On the adapters' inputs.
        target_modules: Names of linear layers, or peft's "all-linear".
        seed: Of the adapters' first weights; the global random state is left as it was.
        model: Attribute path of the model in the LightningModule, if it holds several.

    Raises:
        ValueError: At the start, if peft is not installed or refuses the settings, or for a
            strategy that shards weights.

    Source:
        Hu et al. 2021, arXiv:2106.09685.
    """

    def __init__(
        self,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: str | Sequence[str] = "all-linear",
        seed: int = 0,
        model: str | None = None,
    ) -> None:
        if r < 1:
            raise ValueError(f"LoRA: r must be at least 1, got {r}")
        self.r, self.alpha, self.dropout = r, alpha, dropout
        self.target_modules = target_modules
        self.seed = seed
        self.model = model
        self._trained: list[torch.nn.Parameter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the adapters in; only they are trained."""
        if stage != "fit":
            return
        refuse_shards(trainer, type(self).__name__)
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ValueError("LoRA needs peft: pip install 'circuitkeep[lora]'") from error
        model: Any = find_model(pl_module, self.model)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        targets = self.target_modules
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                inject_adapter_in_model(config, model)
            except ValueError as error:
                raise ValueError(f"LoRA: peft refuses its settings: {error}") from error
        # Its names stand in front of the weights' own; nothing else of the model has changed.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the adapters into the weights, and take them out."""
        if stage != "fit" or not self._trained:
            return
        model = find_model(pl_module, self.model)
        for path, layer in list(model.named_modules()):
            if hasattr(layer, "base_layer"):
                adapted: Any = layer
                adapted.merge(safe_merge=True)
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, adapted.get_base_layer())
        for parameter in self._trained:
            parameter.requires_grad_(True)
        if hasattr(model, "peft_config"):
            del model.peft_config
        self._trained = []
