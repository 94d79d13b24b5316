"""Train the embedded model: two layers that learn induction in seconds on one core."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from circuitkeep.capture.models import build_embedded, load_model_and_tokenizer, save_model
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.repetition import RepeatedSegments


@dataclass(frozen=True)
class Recipe:
    """How the embedded model is trained; another recipe is another folder in the cache.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows of 32 tokens per step.
        lr: Peak learning rate of AdamW.
        betas: Of AdamW.
        weight_decay: Of matrices.
        warmup_steps: Steps over which the learning rate rises.
        clip_norm: Largest norm of the gradient.
        version: Raised when the model or the data change, so that no old model is found.
    """

    steps: int = 700
    batch_size: int = 32
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 50
    clip_norm: float = 1.0
    version: int = 1


def train_embedded(
    cache_dir: str | os.PathLike[str],
    seed: int = 0,
    recipe: Recipe | None = None,
    progress_bar: bool = True,
) -> Path:
    """The folder of an embedded model in Hugging Face format, trained now or earlier.

    Training takes about 10 s on one core and repeats exactly on the same machine. The global
    random state is left as it was found.

    Args:
        cache_dir: Holds one folder per seed and recipe.
        seed: Of the weights and of the data.
        recipe: None for the standard one.
        progress_bar: Show one while training.

    Raises:
        OSError: If the folder cannot be written; nothing is left in its place then.
    """
    recipe = recipe or Recipe()
    key = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(cache_dir) / f"embedded-{key}-seed{seed}"
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        finished = Path(temporary) / folder.name
        # Inside, so that a folder that cannot be written is found out before the training.
        save_model(_train(seed, recipe, progress_bar), finished)
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        try:
            # Not `save_model` to the folder itself: another process may be reading it by now.
            os.rename(finished, folder)
        except OSError:
            # Another process has trained the same model meanwhile; its folder is as good.
            if not _is_whole(folder):
                raise
    return folder


def load_embedded(
    cache_dir: str | os.PathLike[str], seed: int = 0, progress_bar: bool = True
) -> tuple[Any, None]:
    """The embedded model, trained first if need be, and no tokenizer: its tokens mean nothing.

    Args:
        cache_dir: See `train_embedded`.
        seed: See `train_embedded`.
        progress_bar: See `train_embedded`.
    """
    return load_model_and_tokenizer(train_embedded(cache_dir, seed, None, progress_bar))


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def _train(seed: int, recipe: Recipe, progress_bar: bool) -> Any:
    data = RepeatedSegments(
        train_rows=recipe.steps * recipe.batch_size, batch_size=recipe.batch_size, seed=seed
    )
    # CPU, so that the same seed gives the same weights; it is too small to gain from a GPU.
    with torch.random.fork_rng(devices=[]):
        model = build_embedded(seed)
        task = CausalLM(
            model,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            warmup_steps=recipe.warmup_steps,
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
