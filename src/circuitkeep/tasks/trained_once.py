"""Small models that are trained on first use and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer

from circuitkeep.capture.models import has_tokenizer, save_model
from circuitkeep.tasks.language_modelling import CausalLM


@dataclass(frozen=True)
class Recipe:
    """How a small model is trained; another recipe is another folder in the cache.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows per step.
        lr: Peak learning rate of AdamW.
        betas: Of AdamW.
        weight_decay: Of matrices.
        warmup_steps: Steps over which the learning rate rises.
        clip_norm: Largest norm of the gradient.
        version: Raised when the model, the data or the schedule change, so that no old model is
            found.
    """

    steps: int = 700
    batch_size: int = 32
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    version: int = 1


def train_once(
    cache_dir: str | os.PathLike[str],
    name: str,
    seed: int,
    recipe: Recipe,
    train: Callable[[], Any],
    tokenizer: Any = None,
) -> Path:
    """The folder of a model in Hugging Face format, trained now or earlier.

    Args:
        cache_dir: Holds one folder per name, seed and recipe.
        name: Of the model.
        seed: That `train` trains with.
        recipe: That `train` trains by.
        train: Returns the trained model.
        tokenizer: Saved beside the model.

    Raises:
        OSError: If the folder cannot be written; nothing is left in its place then.
    """
    key = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(cache_dir) / f"{name}-{key}-seed{seed}"

    def whole() -> bool:
        files = ("config.json", "model.safetensors")
        return all((folder / file).is_file() for file in files) and (
            tokenizer is None or has_tokenizer(folder)
        )

    if whole():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        finished = Path(temporary) / folder.name
        # Inside, so that a folder that cannot be written is found out before the training.
        save_model(train(), finished, tokenizer)
        if folder.exists() and not whole():
            shutil.rmtree(folder)
        try:
            # Not `save_model` to the folder itself: another process may be reading it by now.
            os.rename(finished, folder)
        except OSError:
            # Another process has trained the same model meanwhile; its folder is as good.
            if not whole():
                raise
    return folder


def train_small(
    model: Any,
    data: LightningDataModule,
    recipe: Recipe,
    schedule: str = "constant",
    progress_bar: bool = True,
) -> Any:
    """The model after training on the CPU, so that the same seed gives the same weights.

    It is too small to gain from a GPU. The global random state is left as it was found.

    Args:
        model: Trained in place.
        data: Its training rows are used.
        recipe: How.
        schedule: Of the learning rate; see `CausalLM`.
        progress_bar: Show one.
    """
    with torch.random.fork_rng(devices=[]):
        task = CausalLM(
            model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            warmup_steps=recipe.warmup_steps,
            schedule=schedule,
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=recipe.steps,
            gradient_clip_val=recipe.clip_norm,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress_bar,
        )
        trainer.fit(task, datamodule=data)
    return model
