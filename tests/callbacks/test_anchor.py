"""L2-SP and EWC in real trainings. Run as a script, this file trains in two processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from circuitkeep.callbacks.anchor import EWC, L2SP
from circuitkeep.callbacks.base_weights import refuse_shards
from circuitkeep.callbacks.fisher import diagonal_fisher
from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.penalties import Activations, BehaviourKL, Labels
from circuitkeep.probing import probe_rows

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)


def gpt2(dtype=torch.float32, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"vocab_size": 36, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
        drop = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
        ends = {"bos_token_id": 32, "eos_token_id": 33}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **{**drop, **changes}, **ends)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


class Task(LightningModule):
    """Anybody's module; with `anchor`, the reference implementation: the distance in the loss."""

    def __init__(self, model, anchor=None, automatic=True):
        super().__init__()
        self.model, self.anchor, self.automatic_optimization = model, anchor, automatic

    def training_step(self, batch, batch_idx):
        logits = self.model(input_ids=batch[0]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())
        if self.anchor is not None:
            loss = loss + self.anchor(self.model)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def loader(rank=0, processes=1):
    tokens = torch.randint(0, 32, (24, 10), generator=torch.Generator().manual_seed(5))
    rows = tokens.view(-1, processes, 2, 10)[:, rank].reshape(-1, 10)
    return DataLoader(TensorDataset(rows), 2 if processes > 1 else 4)


def fit(folder, task, *callbacks, data=None, ckpt_path=None, **options):
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
    trainer.fit(task, loader() if data is None else data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Saves(Callback):
    """A checkpoint between two epochs."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def weights_of(task):
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def distance(base, weight, fisher=None):
    """Half the squared distance by a loop over the weights, for the loss."""
    start = {name: p.detach().clone() for name, p in base.named_parameters()}

    def of(model):
        parts = [
            ((1 if fisher is None else fisher[name]) * (p - start[name]).square()).sum()
            for name, p in model.named_parameters()
        ]
        return weight / 2 * sum(parts)

    return of


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"automatic": False}],
    ids=str,
)
def test_it_trains_as_with_the_distance_in_the_loss(tmp_path, options):
    options = dict(options)
    automatic = options.pop("automatic", True)
    base = gpt2(torch.float64)
    batch = probe_rows(CIRCUIT, attach(base), None, "train", 5, 0)
    fisher = diagonal_fisher(attach(base), batch)
    for rival, anchor in (
        (L2SP(weight=3.0), distance(base, 3.0)),
        (EWC(CIRCUIT, weight=300.0, rows=5), distance(base, 300.0, fisher)),
    ):
        by_hand = Task(copy.deepcopy(base), anchor, automatic)
        fit(tmp_path / "by hand", by_hand, **options)
        held = Task(copy.deepcopy(base), automatic=automatic)
        fit(tmp_path / "held", held, rival, **options)
        free = Task(copy.deepcopy(base), automatic=automatic)
        fit(tmp_path / "free", free, **options)
        assert_close(weights_of(held), weights_of(by_hand), rtol=1e-9, atol=1e-11)
        start = weights_of(Task(base))
        assert (weights_of(held) - start).norm() < (weights_of(free) - start).norm()


def test_weight_0_changes_no_bit(tmp_path):
    runs = []
    for callbacks in ([], [L2SP(0.0)], [EWC(CIRCUIT, 0.0)]):
        torch.manual_seed(1)
        task = Task(gpt2(resid_pdrop=0.3))
        fit(tmp_path, task, *callbacks)
        runs.append((weights_of(task), torch.rand(3)))
    for weights, drawn in runs[1:]:
        assert torch.equal(weights, runs[0][0])
        assert torch.equal(drawn, runs[0][1])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_random_state_is_left_alone(tmp_path):
    drawn = []
    for callbacks in ([], [EWC(CIRCUIT, 1.0, rows=3)]):
        torch.manual_seed(1)
        fit(tmp_path, Task(gpt2(resid_pdrop=0.3)), *callbacks)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("rival", [lambda: L2SP(3.0), lambda: EWC(CIRCUIT, 300.0, rows=4)])
def test_a_resumed_run_is_held_to_the_base_it_began_with(tmp_path, rival):
    whole = Task(gpt2())
    fit(tmp_path / "whole", whole, rival(), max_epochs=2)
    checkpoint = tmp_path / "saved.ckpt"
    fit(tmp_path / "run", Task(gpt2()), rival(), Saves(checkpoint), max_epochs=2)
    other = Task(gpt2())
    fit(tmp_path / "elsewhere", other, rival(), ckpt_path=checkpoint, max_epochs=2)
    assert torch.equal(weights_of(other), weights_of(whole))
    (kept,) = (tmp_path / "run").rglob("*.safetensors")
    kept.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"not at .*reference="):
        fit(tmp_path / "run", Task(gpt2()), rival(), ckpt_path=checkpoint, max_epochs=2)
    kept.write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds no base weights"):
        fit(tmp_path / "run", Task(gpt2()), rival(), ckpt_path=checkpoint, max_epochs=2)


def test_the_base_of_another_model_is_refused(tmp_path):
    checkpoint = tmp_path / "saved.ckpt"
    fit(tmp_path / "run", Task(gpt2()), L2SP(), Saves(checkpoint))
    other = gpt2()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    fit(tmp_path / "other", Task(other), L2SP(), max_steps=1)
    (kept,) = (tmp_path / "other").rglob("*.safetensors")
    with pytest.raises(ValueError, match="not those the resumed run began with"):
        fit(tmp_path, Task(gpt2()), L2SP(reference=kept), ckpt_path=checkpoint, max_epochs=2)


def test_fisher_by_a_loop(tiny_model):
    """Empirical: the squared gradient of each row's answers, over how many they are."""
    model = tiny_model("llama", dtype=torch.float64)
    batch = probe_rows(CIRCUIT, attach(model), None, "train", 3, 0)
    found = diagonal_fisher(attach(model), batch, "empirical")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(3):
        log_probs = model(batch.tokens[row : row + 1]).logits[0].log_softmax(-1)
        own = batch.answer_row == row
        score = log_probs[batch.answer_position[own], batch.answer[own]].sum()
        model.zero_grad()
        score.backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.square() / own.sum() / 3
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name])


def test_true_fisher_is_the_curvature_of_the_behaviour_kl(tiny_model):
    """Over many draws: along one weight at a time, where the diagonal is all there is."""
    model = tiny_model("llama", dtype=torch.float64)
    backend = attach(model)
    batch = probe_rows(CIRCUIT, backend, None, "train", 1, 0)
    draws = [diagonal_fisher(backend, batch, "true", seed)["lm_head.weight"] for seed in range(300)]
    mean = torch.stack(draws).mean(0)
    place = (mean == mean.max()).nonzero()[0].tolist()

    def log_probs():
        return model(batch.tokens).logits[0, batch.answer_position].log_softmax(-1)

    mask = torch.ones(1, 1, dtype=torch.bool)
    labels = Labels(mask, mask[:, None], mask[:, None, None], batch.answer_row)
    with torch.no_grad():
        before, step = log_probs(), 1e-3
        model.lm_head.weight[tuple(place)] += step
        kl = BehaviourKL()(
            Activations(log_probs=log_probs()), Activations(log_probs=before), labels
        )
    assert (mean[tuple(place)] / 2 * step**2).item() == pytest.approx(kl.item(), rel=0.25)


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weight must be 0 or more, got -1"):
        L2SP(-1.0)
    with pytest.raises(ValueError, match="unknown fisher 'ture'; did you mean 'true'"):
        EWC(CIRCUIT, fisher="ture")
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        EWC(CIRCUIT, rows=0)

    class Sharded:
        strategy = FSDPStrategy()

    with pytest.raises(ValueError, match="FSDPStrategy does not leave in one place"):
        refuse_shards(Sharded(), "L2SP")


def train_in(processes, folder):
    seen = []
    for rival in (L2SP(3.0), EWC(CIRCUIT, 300.0, rows=4)):
        task = Task(gpt2(torch.float64))
        more = {}
        data = loader()
        if processes > 1:
            more = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
            data = loader(int(os.environ.get("LOCAL_RANK", 0)), 2)
        fit(folder, task, rival, data=data, **more)
        seen.append(weights_of(task))
    return seen


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"seen{rank}.pt") for rank in range(2))
    for one, other, alone in zip(first, second, train_in(1, tmp_path), strict=True):
        assert torch.equal(one, other)
        assert_close(one, alone, rtol=1e-4, atol=1e-7)


if __name__ == "__main__":
    rank = os.environ.get("LOCAL_RANK", "0")
    torch.save(train_in(2, Path(sys.argv[1])), Path(sys.argv[1]) / f"seen{rank}.pt")
