"""Go on after a crash as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

KEY = "circuitkeep.ExactResume"


class ExactResume(Callback):
    """Makes a run that is resumed from a checkpoint continue bit for bit.

    Lightning restores weights, optimizer and counters. This adds, per process, the random state
    of torch (CPU and CUDA), numpy and Python, and the position and epoch of every training
    loader that has ``state_dict`` and ``load_state_dict``. With the loaders of
    `circuitkeep.tasks` (or any `torchdata.stateful_dataloader.StatefulDataLoader`) the losses
    and weights on a CPU are those of the uninterrupted run, wherever in an epoch the checkpoint
    was written, as long as it was written after an optimizer step: gradients that were still
    being accumulated are in no checkpoint. On CUDA the same numbers go in; whether the same come
    out is up to the kernels (`Trainer(deterministic=True)`).

    Put it first among the callbacks, so that whatever the others draw in `on_train_start` is
    drawn from the restored state too.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state of every process; all of them call this, the first one writes."""
        own = {
            "random": random_state(),
            "loaders": [loader.state_dict() for loader in _loaders(trainer)],
            "epoch_finished": trainer.fit_loop.epoch_loop._num_ready_batches_reached(),
        }
        states = [own]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        checkpoint[KEY] = {"ranks": states}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the state until the loaders exist."""
        self._saved = checkpoint.get(KEY)
        if self._saved is None:
            rank_zero_warn(
                "the checkpoint was written without ExactResume: the run goes on, but not as it "
                "would have without the interruption"
            )
        elif len(self._saved["ranks"]) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint was written by {len(self._saved['ranks'])} processes and is "
                f"resumed by {trainer.world_size}: the run goes on, but with other batches"
            )
            self._saved = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the loaders and the random state where they were."""
        if self._saved is None:
            return
        state = self._saved["ranks"][trainer.global_rank]
        self._saved = None
        fit_loop = trainer.fit_loop
        fetcher = fit_loop._data_fetcher
        assert fetcher is not None
        if fit_loop.restarted_on_epoch_end:
            # Where max_steps is set, Lightning 2.6 goes back into an epoch that was over when
            # the checkpoint was written, finds nothing to do there and counts it a second time.
            fit_loop.epoch_progress.increment_completed()
            fit_loop.reset_restart_stage()
            fit_loop.epoch_loop.restarting = False
            fit_loop.epoch_loop.reset_restart_stage()
        loaders = _loaders(trainer)
        if len(loaders) != len(state["loaders"]):
            raise ValueError(
                f"the checkpoint holds the position of {len(state['loaders'])} training loaders, "
                f"but the run has {len(loaders)}; resume with the data it was started with"
            )
        for loader, position in zip(loaders, state["loaders"], strict=True):
            _set_epoch(loader, trainer.current_epoch)
            loader.load_state_dict(position)
        if state["epoch_finished"]:
            # Reading past the old epoch's end makes the next iterator begin the new epoch.
            for loader in loaders:
                next(iter(loader), None)
            restore_random_state(state["random"])
            iter(fetcher)
        else:
            iter(fetcher)
            restore_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """The state of every global generator, in types that `torch.load` accepts from strangers."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (str(name), torch.from_numpy(np.array(keys, np.int64)), *map(float, rest)),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned.

    The CUDA part is skipped on a machine without CUDA or with another number of devices.
    """
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device_state.cpu() for device_state in state["cuda"]])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss)
    )
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _loaders(trainer: Trainer) -> list[Any]:
    """The training loaders whose position can be saved."""
    loaders = trainer.fit_loop._combined_loader
    return [x for x in loaders.flattened if hasattr(x, "load_state_dict")] if loaders else []


def _set_epoch(loader: Any, epoch: int) -> None:
    # Lightning does this too, but only after it has made the first iterator.
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
