"""Run as a script, this file trains in two processes whose clocks differ: see `main`."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from circuitkeep.callbacks import budget as module
from circuitkeep.callbacks.budget import BLOCKS, MOST_EVERY, WithinBudget, choose
from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.penalties import PatternDivergence, Sum

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)
WINDOW = BLOCKS * 3


class Task(LightningModule):
    """A step takes as long on `clock` as `plain_s` says."""

    def __init__(self, clock=None, plain_s=1.0, skips=()):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drop = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
            ends = {"bos_token_id": 32, "eos_token_id": 33}
            sizes = {"vocab_size": 36, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
            self.model = GPT2LMHeadModel(GPT2Config(**sizes, **drop, **ends)).train()
        self.clock, self.plain_s, self.skips = clock, plain_s, skips

    def training_step(self, batch, batch_idx):
        if self.clock is not None:
            self.clock.now_s += self.plain_s
        if batch_idx in self.skips:
            return None
        return self.model(input_ids=batch, labels=batch).loss

    def train_dataloader(self):
        tokens = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(5))
        return DataLoader([tokens] * 400, batch_size=None)  # wherever a resumed run goes on

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Clock(PatternDivergence):
    """A penalty that takes its time on a clock of its own."""

    def __init__(self, fixed_s, per_row_s):
        super().__init__()
        self.now_s, self.fixed_s, self.per_row_s = 0.0, fixed_s, per_row_s

    def forward(self, now, reference, labels):
        self.now_s += self.fixed_s + len(labels.query_mask) * self.per_row_s
        return super().forward(now, reference, labels)


class Remember(Logger):
    name, version = "remember", 0

    def __init__(self):
        super().__init__()
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        for key, value in metrics.items():
            if "/budget/" in key:
                self.seen.setdefault(step, {})[key] = value

    def log_hyperparams(self, *args, **kwargs):
        pass


class Watch(Callback):
    """Keeps what each step was given: step -> (rows, scale)."""

    def __init__(self, guard):
        self.seen = {}
        inner = guard._penalty

        def penalty(backend, step, trainer, rows, scale):
            self.seen[step] = rows, scale
            return inner(backend, step, trainer, rows, scale)

        guard._penalty = penalty


def guard(clock=None, **options):
    options = {"budget": 0.05, "rows_per_step": 4, "pool_rows": 8, "weight": 1.0, **options}
    penalty = PatternDivergence() if clock is None else Sum({"pattern": clock})
    return CircuitPreservation(CIRCUIT, penalty, **options)


def fit(folder, task, *callbacks, ckpt_path=None, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(task, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def clocked(monkeypatch):
    """Makes a guard and a task on a clock that only they move."""

    def make(fixed_s, per_row_s, skips=(), plain_s=1.0, **options):
        clock = Clock(fixed_s, per_row_s)
        monkeypatch.setattr(module, "now_s", lambda device: clock.now_s)
        task = Task(plain_s=plain_s, skips=skips)
        task.__dict__["clock"] = clock  # not a submodule: its time is no parameter's
        return guard(clock, **options), task, clock

    return make


@pytest.mark.parametrize(
    ("fixed_s", "per_row_s", "rows", "every_n", "overhead"),
    [
        (0.0, 0.001, 8, 1, 0.008),  # all of it fits
        (0.01, 0.01, 2, 1, 0.03),  # exactly: 1% + 2 x 1%
        (0.04, 0.01, 2, 2, 0.03),  # one row needs every 2nd step, which has room for 2
        (0.06, 0.0, 8, 2, 0.03),  # rows that cost nothing
        (0.0, 0.3, 1, 10, 0.03),
        (0.0, 0.0, 8, 1, 0.0),
        (5.0, 1.0, 1, MOST_EVERY, 0.06),  # over the budget, and says so
    ],
)
def test_what_is_chosen(fixed_s, per_row_s, rows, every_n, overhead):
    choice = choose(1.0, fixed_s, per_row_s, 0.03, 8)
    assert (choice.rows, choice.every_n) == (rows, every_n)
    assert choice.overhead == pytest.approx(overhead)
    slower = choose(10.0, 10 * fixed_s, 10 * per_row_s, 0.03, 8)
    assert (slower.rows, slower.every_n) == (rows, every_n), "only ratios count"


def test_the_choice_is_within_the_budget_and_uses_it():
    draw = random.Random(0)
    for _ in range(300):
        plain, budget, most = (
            10 ** draw.uniform(-3, 1),
            draw.uniform(0.005, 0.5),
            draw.choice([1, 8]),
        )
        fixed, row = (plain * 10 ** draw.uniform(-4, 0.5) for _ in range(2))
        choice = choose(plain, fixed, row, budget, most)

        def overhead(rows, every_n, plain=plain, fixed=fixed, row=row):
            return (fixed + rows * row) / (every_n * plain)

        assert choice.overhead == pytest.approx(overhead(choice.rows, choice.every_n))
        if overhead(1, MOST_EVERY) > budget:
            assert (choice.rows, choice.every_n) == (1, MOST_EVERY)
            continue
        assert choice.overhead <= budget * (1 + 1e-6)
        assert choice.rows == most or overhead(choice.rows + 1, choice.every_n) > budget
        assert choice.every_n == 1 or overhead(1, choice.every_n - 1) > budget


def test_a_training_stays_within_the_budget(tmp_path, clocked, monkeypatch):
    """A row adds 30% to a step, and four 45%; measured twice."""
    monkeypatch.setattr(module, "REST_STEPS", 60)
    penalised, task, _ = clocked(0.25, 0.05, budget=0.2)
    logger, watch = Remember(), Watch(penalised)
    fit(tmp_path, task, penalised, watch, logger=logger, max_steps=2 * WINDOW + 62)
    chosen, again = sorted(logger.seen)[:2]
    assert chosen == WINDOW
    rows, every_n, overhead = (
        logger.seen[WINDOW][f"circuit/guarded/budget/{key}"]
        for key in ("rows", "every_n", "overhead")
    )
    assert logger.seen[again] == pytest.approx(logger.seen[WINDOW])
    period = again - WINDOW
    assert period == WINDOW + every_n * math.ceil(60 / every_n)
    total = sum(0.25 + 0.05 * rows for step, (rows, _) in watch.seen.items() if step < period)
    assert overhead == pytest.approx(total / period, rel=0.05)
    assert 0.15 < total / period <= 0.2 * (1 + 1e-6), "the measuring is paid for, too"
    later = {step: seen for step, seen in watch.seen.items() if WINDOW <= step < period}
    assert set(later) == set(range(WINDOW, period, int(every_n)))
    assert set(later.values()) == {(rows, every_n)}
    for begin in (0, period):
        # Over a measuring, as over the rest, the penalty is that of one in every step.
        first = [watch.seen[step] for step in range(begin, begin + WINDOW) if step in watch.seen]
        assert sorted(first) == [(1, 1.5)] * BLOCKS + [(4, 1.5)] * BLOCKS
    assert sum(scale for step, (_, scale) in watch.seen.items() if step < period) == period


def test_accumulated_batches_are_one_step(tmp_path, clocked):
    """Two batches of half a second; the penalty is in one of them, doubled."""
    penalised, task, _ = clocked(0.0, 0.012, plain_s=0.5, budget=0.04, weight=3.0)
    watch = Watch(penalised)
    fit(tmp_path, task, penalised, watch, max_steps=WINDOW + 4, accumulate_grad_batches=2)
    assert [watch.seen[WINDOW + step] for step in range(4)] == [(3, 6.0)] * 4
    assert {scale for step, (_, scale) in watch.seen.items() if step < WINDOW} == {9.0}


@pytest.mark.parametrize("rows", [1, None])
def test_one_row_at_most(tmp_path, rows, clocked):
    """Only two kinds of steps are measured, and every other one has the penalty."""
    penalised, task, _ = clocked(0.0, 0.25, rows_per_step=rows, budget=0.1)
    watch = Watch(penalised)
    fit(tmp_path, task, penalised, watch, max_steps=2 * BLOCKS + 6)
    first = [seen for step, seen in watch.seen.items() if step < 2 * BLOCKS]
    assert first == [(1, 2.0)] * BLOCKS
    assert [step for step in watch.seen if step >= 2 * BLOCKS] == [16, 19]


@pytest.mark.filterwarnings("ignore:.*returned `None`:UserWarning")
def test_skipped_steps_do_not_count(tmp_path, clocked):
    """With half of the batches skipped there is nothing to choose by, and it measures anew."""
    penalised, task, _ = clocked(0.0, 0.01, skips=range(0, WINDOW, 2))
    watch = Watch(penalised)
    fit(tmp_path, task, penalised, watch, max_steps=2 * WINDOW + 1)
    assert 1 < max(watch.seen) <= 2 * WINDOW
    assert {scale for step, (_, scale) in watch.seen.items() if step < 2 * WINDOW} == {1.5}
    assert watch.seen[2 * WINDOW] == (4, 1)


def test_a_budget_that_cannot_be_kept(tmp_path, clocked):
    penalised, task, _ = clocked(3.0, 1.0, budget=0.01)
    with pytest.warns(UserWarning, match=r"cannot be kept within budget=0.01: even 1 probe rows"):
        fit(tmp_path, task, penalised, max_steps=WINDOW + 1)
    assert penalised.state_dict()["budget"]["every_n"] == MOST_EVERY


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before:UserWarning"
)
def test_a_resumed_run_keeps_the_choice(tmp_path, clocked):
    def run(name, per_row_s, ckpt_path=None, **options):
        penalised, task, _ = clocked(0.0, per_row_s, **options)
        watch = Watch(penalised)
        saving = ModelCheckpoint(
            tmp_path / name, "{step}", every_n_train_steps=5, save_top_k=-1, save_last=False
        )
        options = {"enable_checkpointing": True, "max_steps": WINDOW + 16}
        fit(tmp_path, task, penalised, watch, saving, ckpt_path=ckpt_path, **options)
        return watch.seen, torch.cat([p.detach().flatten() for p in task.parameters()])

    seen, weights = run("whole", 0.15)
    last = tmp_path / "whole" / f"step={WINDOW + 6}.ckpt"
    key = "CircuitPreservation/guarded"
    state = torch.load(last, weights_only=True)["callbacks"][key]["budget"]
    assert {type(value) for value in state.values()} <= {int, float}
    assert state["origin"] == WINDOW
    assert state["every_n"] > 3
    # Whatever the clock of the machine says on which it goes on.
    later, resumed = run("resumed", 0.0, last)
    assert later == {step: what for step, what in seen.items() if step >= WINDOW + 6}
    assert torch.equal(resumed, weights)
    early = tmp_path / "whole" / "step=5.ckpt"
    assert "budget" not in torch.load(early, weights_only=True)["callbacks"][key]
    anew, _ = run("early", 0.0, early)
    assert {step for step in anew if step >= 5 + WINDOW} == set(range(5 + WINDOW, WINDOW + 16))
    other, _ = run("other", 0.0, last, budget=0.5)
    assert {scale for _, scale in other.values()} == {1.5}, "chosen for another budget"


def test_a_fit_after_another_measures_anew(tmp_path, clocked):
    penalised, task, _ = clocked(0.0, 0.001)
    fit(tmp_path, task, penalised, max_steps=WINDOW + 1)
    assert penalised.state_dict()["budget"]["origin"] == WINDOW, "asked for after the end"
    watch = Watch(penalised)
    fit(tmp_path, task, penalised, watch, max_steps=2)
    assert {scale for _, scale in watch.seen.values()} == {1.5}


def test_ranks_share_the_rows():
    """Of 5 rows over 2 ranks each has at most 3, and one of each is the least."""
    pace = WithinBudget(0.05, 5, CIRCUIT, 2, 0, None)
    shares = [pace.at(step) for step in range(3)]
    assert sorted(share.rows for share in shares if share is not None) == [2, 5]


def test_without_a_budget_nothing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "now_s", lambda device: pytest.fail("timed"))
    plain = guard(budget=None)
    fit(tmp_path, Task(), plain, max_steps=2)
    assert plain.state_dict().keys() == {"reference"}
    fit(tmp_path, Task(), guard(weight=0.0), max_steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "between 0 and 1 .*, got 0.0"),
        ({"budget": 3.0}, "between 0 and 1 .*, got 3.0"),
        ({"budget": float("nan")}, "between 0 and 1 .*, got nan"),
        ({"every_n_steps": 4}, "budget=0.05 chooses the interval itself, but every_n_steps=4"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        guard(**options)


def main():
    """Train in two processes, of which the second finds the penalty cheap."""
    folder = Path(sys.argv[1])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    clock = Clock(0.0, (0.2, 0.001)[rank])
    module.now_s = lambda device: clock.now_s
    task = Task()
    task.__dict__["clock"] = clock
    penalised = guard(clock)
    watch = Watch(penalised)
    steps = {"max_steps": WINDOW + 9}
    fit(folder, task, penalised, watch, devices=2, strategy="ddp", **steps)
    (folder / f"{rank}.json").write_text(json.dumps(sorted(watch.seen.items())))


def test_processes_choose_the_same(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    late = [step for step, _ in first if step >= WINDOW]
    assert late == [WINDOW, WINDOW + 5], "the first one's clock counts"


if __name__ == "__main__":
    main()
