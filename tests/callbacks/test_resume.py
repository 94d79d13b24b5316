"""Run as a script, this file trains until it kills itself: see `main`."""

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from circuitkeep.callbacks.checkpoint import AtomicCheckpointIO
from circuitkeep.callbacks.resume import ExactResume, random_state, restore_random_state
from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM

BATCHES = 5

# The resumed runs write no checkpoints of their own.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Witness(Callback):
    """What each batch was, what it cost, and what every generator would have drawn."""

    def __init__(self, kill_after=None):
        self.seen = {}
        self.kill_after = kill_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen[trainer.current_epoch, batch_idx] = (
            outputs["loss"].item(),
            batch["input_ids"].sum().item(),
            trainer.global_step,
            # Lightning's step in the logs.
            trainer.fit_loop.epoch_loop._batches_that_stepped,
            # Not Python's generator: beartype, which checks the types in tests, draws from it.
            torch.rand(()).item(),
            np.random.rand(),
            np.random.randn(),
        )
        if len(self.seen) == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, checkpoint=None, workers=0, kill_after=None, resume=True, **options):
    """Three epochs of five batches with dropout and shuffling; a checkpoint after every step."""
    model = build_embedded(0)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    # A new process starts anywhere: only the checkpoint may bring the state back.
    seed = 1 if checkpoint is None else 99
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    witness = Witness(kill_after)
    saving = [
        ModelCheckpoint(folder, "{epoch}-{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder, "end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
    ]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[*([ExactResume()] if resume else []), witness, *([] if checkpoint else saving)],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=checkpoint is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, **options},
    )
    data = KeyValueMap(8 * BATCHES, 16, batch_size=8, num_workers=workers)
    task = CausalLM(model, schedule="cosine", warmup_steps=2)
    strict = True if checkpoint else None
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=strict)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return witness.seen, weights, trainer.global_step


def main():
    """Train in the folder given and die, by SIGKILL, after so many batches."""
    folder, batches, accumulate = sys.argv[1:]
    run(Path(folder), kill_after=int(batches), accumulate_grad_batches=int(accumulate))


def check(whole, resumed):
    seen, weights, steps = whole
    assert resumed[0].items() <= seen.items()
    assert resumed[2] == steps
    assert torch.equal(resumed[1], weights)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        # Lightning resumes differently where max_steps is set.
        {"max_steps": 12},
        {"max_steps": 7, "accumulate_grad_batches": 2, "max_epochs": -1},
        {"val_check_interval": 2},
    ],
    ids=str,
)
def test_every_checkpoint_leads_to_the_same_end(tmp_path, options):
    whole = run(tmp_path, **options)
    # Mid-epoch, last batch of an epoch, end of an epoch; first, middle and last epoch.
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) > 8
    for checkpoint in checkpoints:
        resumed = run(tmp_path, checkpoint, **options)
        try:
            check(whole, resumed)
        except AssertionError as error:
            raise AssertionError(f"resumed from {checkpoint.name}") from error


def test_with_loader_processes(tmp_path):
    whole = run(tmp_path, workers=2, max_epochs=2)
    for name in ("epoch=0-step=3", "epoch=0-step=5", "end-epoch=0", "epoch=1-step=8"):
        check(whole, run(tmp_path, tmp_path / f"{name}.ckpt", workers=2, max_epochs=2))


@pytest.mark.parametrize(
    ("batches", "accumulate", "last"), [(7, 1, "epoch=1-step=6"), (9, 2, "epoch=1-step=4")]
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, batches, accumulate, last):
    killed = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(batches), str(accumulate)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    newest = max(tmp_path.glob("epoch*.ckpt"), key=os.path.getmtime)
    assert newest.stem == last
    whole = run(tmp_path / "whole", accumulate_grad_batches=accumulate)
    resumed = run(tmp_path, newest, accumulate_grad_batches=accumulate)
    assert 0 < len(resumed[0]) < len(whole[0])
    check(whole, resumed)


def test_without_it_the_run_differs(tmp_path):
    """The test above would not notice if there were nothing to restore."""
    whole = run(tmp_path)
    resumed = run(tmp_path, tmp_path / "epoch=0-step=3.ckpt", resume=False)
    assert not torch.equal(resumed[1], whole[1])


def test_a_checkpoint_without_its_state_warns(tmp_path):
    run(tmp_path, resume=False, max_epochs=1)
    with pytest.warns(UserWarning, match="written without ExactResume"):
        run(tmp_path, tmp_path / "epoch=0-step=3.ckpt", max_epochs=1)


def test_random_state_survives_a_strict_load(tmp_path):
    np.random.randn()  # an odd number, so that numpy holds back one half of a pair
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = torch.rand(3), np.random.randn(3), random.gauss(0, 1)
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = torch.rand(3), np.random.randn(3), random.gauss(0, 1)
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]


def test_a_full_disk_spares_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"loops": {}, "weight": torch.zeros(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"the checkpoint was not written .*earlier ones are"):
            io.save_checkpoint({"weight": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(io.load_checkpoint(path)["weight"], torch.zeros(10))


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="the checkpoint was not written"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt", storage_options={})


if __name__ == "__main__":
    main()
