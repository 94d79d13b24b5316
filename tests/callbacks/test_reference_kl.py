"""KL to a frozen copy on the training batch, in real trainings."""

import copy

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.callbacks.reference_kl import ReferenceKL
from circuitkeep.circuits import Circuit, Head, Role

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)


class Task(LightningModule):
    """Anybody's module; with `base`, the divergence is in its own loss, by a loop."""

    def __init__(self, model, base=None, automatic=True, runs=True):
        super().__init__()
        self.model, self.automatic_optimization, self.runs = model.train(), automatic, runs
        self.base = [base]

    def training_step(self, batch, batch_idx):
        tokens, mask = batch
        if not self.runs:
            return self.model.lm_head.weight.sum()
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        if self.base[0] is not None:
            with torch.no_grad():
                was = self.base[0](input_ids=tokens, attention_mask=mask).logits.log_softmax(-1)
            now, total = logits.log_softmax(-1), 0.0
            for row, position in mask.nonzero().tolist():
                p, q = now[row, position], was[row, position]
                total = total + (p.exp() * (p - q)).sum()
            loss = loss + 2.0 * total / mask.sum()
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    tokens = torch.randint(0, 30, (24, 10), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(tokens)
    mask[::3, 6:] = 0
    return DataLoader(TensorDataset(tokens, mask), 4)


def fit(folder, task, *callbacks, ckpt_path=None, **options):
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **options,
        }
    )
    trainer.fit(task, loader(), ckpt_path=ckpt_path, weights_only=True)


def weights_of(task):
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"automatic": False}], ids=str
)
def test_it_trains_as_with_the_divergence_in_the_loss(options, tiny_model, tmp_path):
    options = dict(options)
    automatic = options.pop("automatic", True)
    base = tiny_model("llama", dtype=torch.float64)
    by_hand = Task(copy.deepcopy(base), base, automatic)
    fit(tmp_path / "by hand", by_hand, **options)
    held, free = (Task(copy.deepcopy(base), None, automatic) for _ in range(2))
    fit(tmp_path / "held", held, ReferenceKL(2.0), **options)
    fit(tmp_path / "free", free, **options)
    assert_close(weights_of(held), weights_of(by_hand), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(weights_of(held), weights_of(free), atol=1e-4)
    assert not {"training_step", "manual_backward"} & set(vars(held))
    assert not held.model._forward_hooks


def test_beside_a_guard_both_are_added(tiny_model, tmp_path):
    """In either order, and the guard's probe is not taken for the training batch."""
    found = []
    for first in (0, 1):
        base = tiny_model("llama", dtype=torch.float64)
        task = Task(copy.deepcopy(base))
        guard = CircuitPreservation(CIRCUIT, rows_per_step=2, pool_rows=4)
        pair = [guard, ReferenceKL(2.0)]
        fit(tmp_path / str(first), task, *(pair[::-1] if first else pair))
        found.append(weights_of(task))
        assert not {"training_step", "manual_backward"} & set(vars(task))
    by_hand = Task(copy.deepcopy(base), base)
    guard = CircuitPreservation(CIRCUIT, rows_per_step=2, pool_rows=4)
    fit(tmp_path / "by hand", by_hand, guard)
    for weights in found:
        assert_close(weights, weights_of(by_hand), rtol=1e-9, atol=1e-11)


def test_weight_0_changes_no_bit(tiny_model, tmp_path):
    runs = []
    for callbacks in ([], [ReferenceKL(0.0)]):
        task = Task(tiny_model("llama"))
        fit(tmp_path, task, *callbacks)
        runs.append(weights_of(task))
    assert torch.equal(*runs)


class Saves(Callback):
    """A checkpoint between two epochs."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_is_held_to_the_base_it_began_with(tiny_model, tmp_path):
    whole, path = Task(tiny_model("llama")), tmp_path / "saved.ckpt"
    fit(tmp_path / "run", whole, ReferenceKL(2.0), Saves(path), max_epochs=2)
    other = Task(tiny_model("llama"))
    fit(tmp_path / "run", other, ReferenceKL(2.0), ckpt_path=path, max_epochs=2)
    assert torch.equal(weights_of(other), weights_of(whole))


def test_a_step_that_does_not_run_the_model_is_refused(tiny_model, tmp_path):
    task = Task(tiny_model("llama"), runs=False)
    with pytest.raises(ValueError, match="did not run the model"):
        fit(tmp_path, task, ReferenceKL())
    assert not {"training_step", "manual_backward"} & set(vars(task))
