"""Run as a script, this file trains in two processes: see `main`."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.guard.constraint import Constraint, Multiplier, kept_of
from circuitkeep.guard.schedule import EveryN, Schedule
from circuitkeep.penalties import (
    Activations,
    BehaviourKL,
    Labels,
    PatternDivergence,
)

CIRCUIT = Circuit(
    "guarded",
    (
        Role("induction", (Head(1, 0), Head(1, 1))),
        Role("previous-token", (Head(0, 1), Head(1, 1))),
    ),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)


def shown(retention):
    """What a due step shows of a circuit of which `retention` is left."""
    return torch.tensor([[retention], [1.0]])


class Plant:
    """A circuit of which a weight of 0.5 keeps 95% in the end, and a greater one more.

    What is left approaches that in about 20 steps, and is seen on 30 answers.
    """

    def __init__(self, seed, worst=0.5):
        self.left, self.worst = 1.0, worst
        self.draw = torch.Generator().manual_seed(seed)

    def step(self, weight):
        kept = 1 - self.worst / (1 + (self.worst / 0.05 - 1) * weight / 0.5)
        self.left += (kept - self.left) / 20
        seen = torch.rand(30, generator=self.draw) < self.left
        return shown(seen.float().mean().item())


@pytest.mark.parametrize("initial", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_reached_and_held_from_any_beginning(initial, seed):
    plant, multiplier = Plant(seed), Multiplier(Constraint(0.95), initial)
    left = []
    for step in range(600):
        multiplier.see(plant.step(multiplier.weight_at(step).item()))
        left.append(plant.left)
    assert max(abs(one - 0.95) for one in left[300:]) < 0.02
    assert sum(left[300:]) / 300 == pytest.approx(0.95, abs=0.01)
    assert min(left) > 0.6, "from the least weight it falls, and comes back"


@pytest.mark.parametrize("worst", [0.04, 0.5])
def test_at_least(worst):
    """A circuit that loses no more than is accepted is left alone."""
    plant, multiplier = Plant(0, worst), Multiplier(Constraint(0.95, least=0.01), 1.0)
    for step in range(600):
        multiplier.see(plant.step(multiplier.weight_at(step).item()))
    assert (multiplier.weight.item() < 0.05) == (worst < 0.05)
    assert plant.left > 0.93


@pytest.mark.parametrize(("stuck", "then"), [(0.2, 1.0), (1.0, 0.2)])
def test_no_windup(stuck, then):
    """After however long at a bound, the weight leaves it at once."""
    after = []
    for steps in (300, 3000):
        multiplier = Multiplier(Constraint(0.95), 1.0)
        for _ in range(steps):
            multiplier.see(shown(stuck))
        bound = multiplier.weight.item()
        assert bound == pytest.approx(100.0 if stuck < 0.95 else 1e-3, rel=1e-5)
        weights = []
        for _ in range(120):
            multiplier.see(shown(then))
            weights.append(multiplier.weight.item())
        after.append(weights)
    assert after[0] == pytest.approx(after[1], rel=1e-4)
    factor = weights[-1] / bound
    assert max(factor, 1 / factor) > 10


def test_steps_by_hand():
    """Accepted is 0.1. The averages begin at 0, so the first ratio is the first retention."""
    constraint = Constraint(0.9, integral=0.5, proportional=2.0, smoothing=4.0, most=1e6)
    multiplier = Multiplier(constraint, 3.0)
    assert multiplier.weight_at(0).item() == 3
    told = multiplier.see(shown(0.7))
    assert told["weight"].item() == 3, "that of the step which it was seen in"
    assert told["retention_held_in"].item() == pytest.approx(0.7)
    assert multiplier.weight_at(1).item() == pytest.approx(3 * 3**0.5 * 3**2, rel=1e-5)
    # Averages of 1/4 and then 3/4 * 1/4 + 1/4: 0.7 and 1 weigh 3 to 4.
    told = multiplier.see(shown(1.0))
    retention = (3 * 0.7 + 4 * 1.0) / 7
    assert told["retention_held_in"].item() == pytest.approx(retention)
    ratio = (1 - retention) / 0.1
    expected = 3 * 3**0.5 * ratio**0.5 * ratio**2
    assert multiplier.weight_at(2).item() == pytest.approx(expected, rel=1e-4)
    multiplier.forget()
    assert multiplier.weight_at(2).item() == pytest.approx(3 * 3**0.5 * 3**2, rel=1e-5)


def test_less_is_retained_more_is_wanted():
    weights = []
    for retention in (1.2, 1.0, 0.97, 0.95, 0.9, 0.5, 0.0):
        multiplier = Multiplier(Constraint(0.95), 0.1)
        multiplier.see(shown(retention))
        weights.append(multiplier.weight.item())
    assert weights == sorted(weights)
    assert weights[0] == weights[1], "beyond a quarter of what is accepted it no longer counts"
    assert weights[3] == pytest.approx(0.1, rel=1e-4)
    assert len(set(weights)) == 6


def test_what_is_retained_by_hand():
    """Two rows with 1 and 2 answers; of the three, the last is lost."""
    log_probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]).log()
    now = log_probs.clone()
    now[2] = torch.tensor([0.6, 0.1, 0.3]).log()
    heads, target = len(CIRCUIT.heads), torch.zeros(2, 3, 2, 4, dtype=torch.bool)
    target[:, :, 0, 1] = True
    target[1, 0] = False  # head 0 has no target in row 1
    labels = Labels(
        torch.ones(2, 2, dtype=torch.bool), target.any(-1), target, torch.tensor([0, 1, 1])
    )
    before = Activations(torch.full((2, heads, 2, 4), 0.5), None, log_probs)
    pattern = before.pattern.clone()
    pattern[:, 0] *= 0.5  # L0H1: previous-token
    pattern[1, 2] *= 0  # L1H1, in one of two rows: both
    after = Activations(pattern, None, now)
    kept = kept_of("behaviour", CIRCUIT, after, before, labels)
    assert kept.tolist() == [[0.75], [1.0]]
    few = replace(before, log_probs=log_probs.topk(1).values, tokens=log_probs.topk(1).indices)
    assert torch.equal(kept_of("behaviour", CIRCUIT, after, few, labels), kept)
    kept = kept_of("identity", CIRCUIT, after, before, labels)
    # Induction: L1H0 at 0.5 and L1H1 at 0.25. Previous-token: L0H1 at 0.125 of 0.25, and L1H1.
    torch.testing.assert_close(kept, torch.tensor([[0.375, 0.1875], [0.5, 0.375]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention": 1.0}, "between 0 and 1 .*, got 1.0"),
        ({"retention": 95.0}, "got 95.0"),
        ({"retention": 0.0}, "got 0.0"),
        ({"retention": float("nan")}, "got nan"),
        ({"kind": "causal"}, "kind='causal': choose one of 'behaviour', 'identity'"),
        ({"smoothing": 0.5}, "smoothing must be >= 1, got 0.5"),
        ({"integral": -1.0}, "integral must be >= 0"),
        ({"least": 2.0, "most": 1.0}, "0 < least < most is needed, got least=2.0, most=1.0"),
        ({"least": 0.0}, "0 < least"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Constraint(**{"retention": 0.95, **settings})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, "a constraint chooses the weight itself.*weight=0.0"),
        ({"warmup_steps": 5}, "warmup_steps=5"),
        ({"decay": "linear"}, "decay=linear"),
        ({"constraint": None, "decay": "steps"}, "decay must be 'linear', 'cosine' or None"),
        ({"constraint": 1.5}, "got 1.5"),
        ({"penalty": PatternDivergence()}, r"the behaviour cannot be seen .*\(pattern\); add Be"),
        (
            {"penalty": BehaviourKL(), "constraint": Constraint(0.9, "identity")},
            r"the identity cannot be seen .*\(log_probs\).*constrain kind='behaviour'",
        ),
    ],
)
def test_what_a_constraint_does_not_go_with(options, message):
    with pytest.raises(ValueError, match=message):
        guard(**options)


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        (None, 0, {0: 2.0, 50: 2.0, 99: 2.0}),
        (None, 4, {0: 0.5, 3: 2.0, 99: 2.0}),
        ("linear", 0, {0: 2.0, 25: 1.5, 50: 1.0, 99: 0.02, 100: 0.0, 120: 0.0}),
        ("linear", 20, {9: 1.0, 19: 2.0, 20: 2.0, 60: 1.0, 80: 0.5, 100: 0.0}),
        ("cosine", 0, {0: 2.0, 25: 1 + math.sqrt(0.5), 50: 1.0, 75: 1 - math.sqrt(0.5), 100: 0.0}),
        ("cosine", 20, {9: 1.0, 20: 2.0, 60: 1.0, 100: 0.0}),
    ],
)
def test_schedules(decay, warmup, expected):
    schedule = Schedule(2.0, warmup, EveryN(1, 2), decay, 100.0)
    found = {step: schedule.weight_at(step) for step in expected}
    assert found == pytest.approx(expected, abs=1e-12)


class Task(LightningModule):
    """Learns other things than the probe asks for, and forgets what it said there."""

    def __init__(self, lr=0.1, skips=(), dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drop = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
            ends = {"bos_token_id": 32, "eos_token_id": 33}
            sizes = {"vocab_size": 36, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
            self.model = GPT2LMHeadModel(GPT2Config(**sizes, **drop, **ends)).to(dtype).train()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self.lr, self.skips = lr, skips

    def training_step(self, batch, batch_idx):
        loss = self.model(input_ids=batch, labels=batch).loss
        return None if batch_idx in self.skips else loss

    def train_dataloader(self):
        rank, world = int(os.environ.get("LOCAL_RANK", 0)), self.trainer.world_size
        tokens = torch.randint(0, 8, (4, 6), generator=torch.Generator().manual_seed(5))
        # An epoch ends where a resumed run begins.
        return DataLoader([tokens[rank::world]] * 7, batch_size=None)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Remember(Logger):
    name, version = "remember", 0

    def __init__(self):
        super().__init__()
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        for key, value in metrics.items():
            if key.startswith("circuit/guarded/"):
                self.seen.setdefault(key.removeprefix("circuit/guarded/"), {})[step] = value

    def log_hyperparams(self, *args, **kwargs):
        pass


class Scales(Callback):
    """Keeps what the penalty was multiplied by: step -> scale."""

    def __init__(self, guard):
        self.seen = {}
        inner = guard._penalty

        def penalty(backend, step, trainer, rows, scale):
            self.seen[step] = float(scale)
            return inner(backend, step, trainer, rows, scale)

        guard._penalty = penalty


def guard(**options):
    return CircuitPreservation(
        CIRCUIT, **{"constraint": 0.95, "rows_per_step": 3, "pool_rows": 8, **options}
    )


def fit(folder, task, *callbacks, ckpt_path=None, **options):
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            "max_steps": 20,
            **options,
        }
    )
    trainer.fit(task, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def weights_of(task):
    return torch.cat([p.detach().flatten() for p in task.parameters()])


@pytest.mark.parametrize("kind", ["behaviour", "identity"])
def test_the_weight_follows_and_is_logged(tmp_path, kind):
    logger, task = Remember(), Task()
    callback = guard(constraint=Constraint(0.95, kind))
    scales = Scales(callback)
    fit(tmp_path, task, callback, scales, logger=logger, log_every_n_steps=1)
    weight, retention = logger.seen["weight"], logger.seen["retention_held_in"]
    assert list(weight) == list(retention) == list(range(20))
    assert weight == pytest.approx(scales.seen), "logged is the weight that was used"
    assert weight[0] == 1, "what the first step showed is for the second"
    assert retention[0] == pytest.approx(1)
    assert min(retention.values()) < 0.999
    for step in range(1, 19):
        error = math.log(max(1 - retention[step], 0.05 / 4) / 0.05)
        before = math.log(max(1 - retention[step - 1], 0.05 / 4) / 0.05)
        moved = math.log(weight[step + 1] / weight[step])
        if 1e-3 < weight[step + 1] < 100:
            assert moved == pytest.approx(0.03 * error + 0.3 * (error - before), abs=1e-3)
    assert {"penalty", "penalty/pattern", "penalty/behaviour"} <= logger.seen.keys()


@pytest.mark.parametrize(("every", "accumulate"), [(4, 1), (1, 2), (2, 3)])
def test_due_every_few_steps_and_accumulation(tmp_path, every, accumulate):
    callback, logger = guard(every_n_steps=every), Remember()
    scales = Scales(callback)
    fit(
        tmp_path,
        Task(),
        callback,
        scales,
        accumulate_grad_batches=accumulate,
        max_steps=8,
        logger=logger,
        log_every_n_steps=1,
    )
    assert list(scales.seen) == list(range(0, 8, every)), "seen once, however many batches"
    for step, weight in logger.seen["weight"].items():
        assert scales.seen[step] == pytest.approx(weight * every * accumulate)
    assert len(set(logger.seen["weight"].values())) == 8 // every


@pytest.mark.filterwarnings("ignore:.*returned `None`:UserWarning")
def test_a_step_whose_first_batch_is_skipped_is_seen_once(tmp_path):
    found = []
    for skips in ((), (0,)):
        callback = guard()
        fit(tmp_path, Task(skips=skips), callback, max_steps=1, accumulate_grad_batches=2)
        found.append(callback.state_dict()["constraint"])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(callback, name, ckpt_path=None):
        task = Task()
        saving = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1)
        options = {"max_steps": 14, "enable_checkpointing": True}
        fit(tmp_path, task, callback, saving, ckpt_path=ckpt_path, **options)
        return task, callback.state_dict()["constraint"]

    whole, state = run(guard(), "whole")
    resumed, again = run(guard(), "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert state == again
    assert torch.equal(weights_of(whole), weights_of(resumed))
    fresh, _ = run(guard(weight=3.0), "fresh")
    assert not torch.equal(weights_of(whole), weights_of(fresh))


def test_the_next_fit_begins_anew(tmp_path):
    callback, found = guard(), []
    for _ in range(2):
        fit(tmp_path, Task(), callback, max_steps=5)
        found.append(callback.state_dict()["constraint"])
    assert found[0] == found[1]


def test_a_role_that_was_never_there(tmp_path):
    class Nowhere(PatternDivergence):
        def forward(self, now, reference, labels):
            reference.pattern.zero_()
            return super().forward(now, reference, labels)

    callback = guard(penalty=Nowhere(), constraint=Constraint(0.9, "identity"))
    with pytest.raises(
        ValueError, match=r"retention_held_in of circuit 'guarded' is (nan|inf).*role"
    ):
        fit(tmp_path, Task(), callback)


def test_the_weight_falls_until_the_end(tmp_path):
    callback = guard(constraint=None, decay="linear", weight=2.0)
    scales = Scales(callback)
    fit(tmp_path, Task(), callback, scales, max_steps=4)
    assert scales.seen == pytest.approx({0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5})


@pytest.mark.filterwarnings("ignore:.*max_epochs.*:UserWarning")
def test_a_training_without_end_has_no_decay(tmp_path):
    callback = guard(constraint=None, decay="cosine")
    with pytest.raises(ValueError, match="the trainer knows no end; give it max_steps"):
        fit(tmp_path, Task(), callback, max_steps=-1, max_epochs=-1)


def train_in(processes, folder):
    """Ten steps; 3 probe rows, so uneven."""
    callback = guard()
    fit(
        folder,
        Task(dtype=torch.float64),
        callback,
        use_distributed_sampler=False,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=10,
    )
    return callback.state_dict()["constraint"]


def main():
    """Train in two processes; each writes what it came to."""
    folder = Path(sys.argv[1])
    state = train_in(2, folder)
    torch.save(state, folder / f"state-{torch.distributed.get_rank()}.pt")


def test_two_processes_agree_and_train_as_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"state-{rank}.pt") for rank in range(2))
    assert one == other
    alone = train_in(1, tmp_path / "alone")
    assert one["weight"] == pytest.approx(alone["weight"], rel=1e-4)
    assert one["weight"] != 1
    assert one["seen"][0] == pytest.approx(alone["seen"][0], rel=1e-5)


if __name__ == "__main__":
    main()
