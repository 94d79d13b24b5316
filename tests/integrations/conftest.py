"""What the penalty's gradient is under Lightning, to hold the other trainers to it."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks import CircuitPreservation

from . import shared
from .shared import CIRCUIT, SETTINGS, WEIGHT, gradient, guard_of, rows, task_loss


class Task(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def training_step(self, batch, batch_idx):
        return task_loss(self.model, batch[0])

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(gradient(self.model))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def check_same(name, found, expected):
    """The largest difference, relative to the largest entry of the same step, is rounding."""
    assert len(found) == len(expected) > 0
    pairs = zip(found, expected, strict=True)
    largest = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    print(f"largest relative difference: {largest:.1e} {name}")
    assert largest < 1e-9


@pytest.fixture(scope="session")
def model_of(tiny_model):
    """A Llama in float64; of seed 1 is the one in training, of seed 0 its base."""
    return lambda seed=1: tiny_model("llama", seed, torch.float64).train()


@pytest.fixture(scope="session")
def fit(tmp_path_factory, word_tokenizer):
    """Trains by Lightning, at learning rate 0; gives the gradient of each optimizer step."""

    def run(model, steps, accumulate=1, reference=None, resumed=False, weight=WEIGHT):
        options = {**SETTINGS, "weight": weight, "tokenizer": word_tokenizer}
        guard = CircuitPreservation(CIRCUIT, reference=reference, **options)
        if resumed:
            guard.load_state_dict({"reference": str(reference)})
        task = Task(model)
        Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path_factory.mktemp("lightning"),
            accumulate_grad_batches=accumulate,
            max_steps=steps,
            callbacks=[guard],
        ).fit(task, DataLoader(TensorDataset(rows(24)), 2))
        return task.seen

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory, fit, model_of):
    """The reference that the base left."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    fit(model_of(0), 1, reference=path)
    return path


@pytest.fixture(scope="session")
def held(base, word_tokenizer):
    """Makes a guard that goes on from the base, as the callback does in `expected`."""
    return lambda **options: guard_of(base, **{"tokenizer": word_tokenizer, **options})


@pytest.fixture(scope="session")
def expected(fit, model_of, base):
    """Three steps' gradient of the penalty under Lightning: what it adds to that of the task."""
    with_penalty = fit(model_of(), 3, reference=base, resumed=True)
    without = fit(model_of(), 3, weight=0.0)
    return [one - other for one, other in zip(with_penalty, without, strict=True)]


@pytest.fixture(scope="session")
def in_two_processes(tmp_path_factory, model_of, word_tokenizer, base):
    """What each of two processes added to the gradient, by kind; see `shared.main`."""
    folder = tmp_path_factory.mktemp("two")
    model_of().save_pretrained(folder / "model")
    word_tokenizer.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, shared.__file__, str(folder), str(base)]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [one.communicate(timeout=180)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    assert all(one.returncode == 0 for one in running), told[0][-3000:] + told[1][-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
