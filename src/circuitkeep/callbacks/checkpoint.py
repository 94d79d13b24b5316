"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from circuitkeep.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place and moved there when complete.

    Lightning 2.6 writes to the system's temporary folder and *copies* from there when the run's
    folder is on another disk: a full disk leaves a torn file where the previous checkpoint
    (``last.ckpt``) was, and a folder without write permission loses the checkpoint silently.

    Pass it to the trainer: ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write `checkpoint` to `path`; whatever was there stays until the new one is complete.

        Raises:
            OSError: In one sentence, if it cannot be written.
        """
        if "://" in os.fspath(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        if storage_options is not None:
            raise TypeError("storage_options mean nothing to a checkpoint on a local disk")
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                _save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint was not written ({error.strerror}); earlier ones are untouched",
                os.fspath(path),
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote.

        Raises:
            ValueError: If the file is torn, or something else than a checkpoint of a training.
        """
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            raise ValueError(f"{path} is no checkpoint, or not a whole one") from error
        if not isinstance(checkpoint, dict) or "loops" not in checkpoint:
            raise ValueError(
                f"{path} is not the checkpoint of a training: name a .ckpt file such as last.ckpt"
            )
        return checkpoint


def _save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        # torch's zip writer hides what the disk said behind a failed internal check.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
