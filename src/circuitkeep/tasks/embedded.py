"""Train the embedded model: two layers that learn induction in seconds on one core."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from circuitkeep.capture.models import build_embedded, load_model_and_tokenizer
from circuitkeep.tasks.repetition import RepeatedSegments
from circuitkeep.tasks.trained_once import Recipe, train_once, train_small


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

    def train() -> Any:
        rows = recipe.steps * recipe.batch_size
        data = RepeatedSegments(train_rows=rows, batch_size=recipe.batch_size, seed=seed)
        return train_small(build_embedded(seed), data, recipe, progress_bar=progress_bar)

    return train_once(cache_dir, "embedded", seed, recipe, train)


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
