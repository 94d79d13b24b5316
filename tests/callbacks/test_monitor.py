import csv
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from circuitkeep.callbacks import CircuitMonitor, ExactResume
from circuitkeep.callbacks import monitor as monitor_module
from circuitkeep.callbacks.head_history import COLUMNS, IMAGE_CELL_PX, HeadHistory, colours
from circuitkeep.callbacks.resume import random_state
from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role, save_circuit
from circuitkeep.evals.circuit import measure_circuit
from circuitkeep.probing import probe_rows
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM

ROWS = 64
ROLES = (Role("previous-token", (Head(0, 1), Head(0, 3))), Role("induction", (Head(1, 2),)))
REPEATED = {"_target_": "circuitkeep.probes.RepeatedTokens"}
SAMPLED = {"_target_": "circuitkeep.probes.OwnSamples", "length": 32}
KINDS = ("identity_retention", "causal_retention", "behaviour_retention")


def circuit(name="repeats", probe=REPEATED, roles=ROLES):
    return Circuit(name, roles, probe, "accuracy", "made up")


def measured(model, of, rows=ROWS, seed=10_000, causal=True):
    backend = attach(model)
    return measure_circuit(
        backend, of, probe_rows(of, backend, None, "held_out", rows, seed), causal
    )


@pytest.fixture(scope="module")
def useful():
    """A circuit whose ablation costs an untrained model something, so that it has retentions."""
    for index in range(4):
        roles = (ROLES[0], Role("induction", (Head(1, index),)))
        found = circuit(roles=roles)
        if measured(build_embedded(0), found).effect_nats.mean() > 1e-4:
            return found
    raise AssertionError("no head is of use")


def trainer_for(callbacks, loggers=(), **options):
    return Trainer(
        accelerator="cpu",
        logger=list(loggers),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )


class Saving(Callback):
    """A checkpoint after every step."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def fit(monitor, loggers=(), ckpt_path=None, save=None, model=None, **options):
    """Five steps unless options say otherwise."""
    task = CausalLM(model or build_embedded(0), lr=1e-2)
    callbacks = [ExactResume(), monitor, *([Saving(save)] if save else [])]
    trainer = trainer_for(callbacks, loggers, **options)
    trainer.fit(
        task,
        datamodule=KeyValueMap(40, 16, batch_size=8),
        ckpt_path=ckpt_path,
        weights_only=None if ckpt_path is None else True,
    )
    return trainer


def steps(monitor):
    return [entry["step"] for entry in monitor.history]


def read_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_measures_what_measure_circuit_measures(useful, tmp_path):
    logger = CSVLogger(tmp_path)
    model = build_embedded(0)
    before = measured(model, useful)
    monitor = CircuitMonitor(useful, every_n_steps=2, rows=ROWS)
    fit(monitor, [logger], model=model)
    after = measured(model, useful)

    # 5 steps: 0 before, 2 and 4 on the way, 5 with the validation at the end of the epoch.
    assert steps(monitor) == [0, 2, 4, 5]
    prefix = "circuit/repeats"
    for entry, found in ((monitor.history[0], before), (monitor.history[-1], after)):
        expected = {
            "behaviour": found.behaviour.mean(),
            "causal_effect_nats": found.effect_nats.mean(),
            "previous-token/score": found.role_scores(useful)["previous-token"].nanmean(),
            "induction/score": found.role_scores(useful)["induction"].nanmean(),
        }
        for key, value in expected.items():
            assert entry[f"{prefix}/{key}"] == pytest.approx(value.item(), abs=1e-6)
    assert [monitor.history[0][f"{prefix}/{kind}"] for kind in KINDS] == [1.0, 1.0, 1.0]
    assert monitor.history[-1][f"{prefix}/causal_retention"] == pytest.approx(
        (after.effect_nats.mean() / before.effect_nats.mean()).item(), rel=1e-4
    )

    logged = [
        row for row in read_csv(Path(logger.log_dir) / "metrics.csv") if row[f"{prefix}/behaviour"]
    ]
    for row, entry in zip(logged, monitor.history, strict=True):
        assert {key: float(row[key]) for key in entry} == entry

    heads = read_csv(Path(logger.log_dir) / "heads.csv")
    assert tuple(heads[0]) == COLUMNS
    assert [int(row["step"]) for row in heads] == [s for s in (0, 2, 4, 5) for _ in range(3)]
    assert [row["head"] for row in heads[:3]] == [
        str(head) for role in useful.roles for head in role.heads
    ]
    assert {row["retention"] for row in heads[:3]} == {"1.0"}
    last, head = heads[-1], useful.roles[1].heads[0]
    score = after.score("induction", head)
    assert float(last["score"]) == pytest.approx(score, abs=1e-6)
    assert float(last["retention"]) == pytest.approx(
        score / before.score("induction", head), rel=1e-4
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore:.*is not logged:UserWarning", "ignore:.*module.s. in eval mode")
@pytest.mark.parametrize("probe", [REPEATED, SAMPLED], ids=["repeated", "sampled"])
def test_the_run_is_the_same_without_it(probe, accumulate):
    class Witness(CausalLM):
        def on_before_optimizer_step(self, optimizer):
            grads = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
            self.seen.append((torch.cat(grads), self.training, self.model.training))

    results = []
    for every_n_steps in (None, 1):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        model = build_embedded(0)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        data = KeyValueMap(40, 16, batch_size=8)
        rows = [{k: v[0] for k, v in row.items()} for row in _rows(data.train_dataloader())]
        task = Witness(model, lr=1e-2)
        task.seen = []
        model.model.norm.eval()  # a mode that somebody chose
        callbacks = []
        if every_n_steps:
            monitor = CircuitMonitor(circuit(probe=probe), every_n_steps=every_n_steps, rows=8)
            callbacks.append(monitor)
        trainer = trainer_for(callbacks, accumulate_grad_batches=accumulate, max_epochs=2)
        trainer.fit(task, DataLoader(rows, 8, shuffle=True), data.val_dataloader())
        flags = [module.training for module in task.modules()]
        weights = torch.cat([p.detach().flatten() for p in task.parameters()])
        results.append((weights, task.seen, flags, random_state()))
    assert steps(monitor) == list(range(trainer.global_step + 1))
    (weights, seen, flags, state), (weights_2, seen_2, flags_2, state_2) = results
    assert torch.equal(weights, weights_2)
    assert flags == flags_2
    assert len(seen) == len(seen_2)
    for (grad, *modes), (grad_2, *modes_2) in zip(seen, seen_2, strict=True):
        assert torch.equal(grad, grad_2)
        assert modes == modes_2
    assert torch.equal(state["torch"], state_2["torch"])
    assert torch.equal(state["numpy"][1], state_2["numpy"][1])
    # Python's generator is not compared: beartype, which checks types here, draws from it.


def _rows(loader):
    for batch in loader:
        for number in range(len(batch["labels"])):
            yield {key: value[number : number + 1] for key, value in batch.items()}


@pytest.mark.filterwarnings("ignore:.*is not logged:UserWarning")
def test_a_resumed_run_goes_on_with_base_rows_and_series(tmp_path):
    """The rows are samples of the base model, which the resumed run no longer has."""
    # No head of the base is ablated here: whether that costs anything is up to chance.
    of = circuit(probe=SAMPLED)
    options = {"every_n_steps": 1, "at_validation": False, "rows": 16, "causal": False}
    whole = CircuitMonitor(of, **options)
    loggers = [CSVLogger(tmp_path, version=name) for name in ("whole", "resumed")]
    fit(whole, loggers[:1], save=tmp_path)
    # As if the run had been killed while it wrote its third evaluation.
    path = Path(loggers[1].log_dir) / "heads.csv"
    path.parent.mkdir()
    text = (Path(loggers[0].log_dir) / "heads.csv").read_text()
    path.write_text("\n".join(text.splitlines()[:8])[:-20])
    resumed = CircuitMonitor(of, **options)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(resumed, loggers[1:], tmp_path / "step=2.ckpt")
    assert steps(resumed) == [0, 1, 2, 3, 4, 5]
    assert resumed.history == whole.history
    assert resumed.history[-1]["circuit/repeats/identity_retention"] != 1.0
    assert path.read_text() == text


def test_resuming_without_a_base_says_so(tmp_path):
    options = {"rows": 8, "causal": False}
    first = CircuitMonitor(circuit("first"), **options)
    fit(first, save=tmp_path)
    checkpoint = tmp_path / "step=2.ckpt"
    both = CircuitMonitor([circuit("first"), circuit("second")], every_n_steps=2, **options)
    with pytest.warns(UserWarning, match="no checkpoint holds a base .* circuit second"):
        fit(both, ckpt_path=checkpoint)
    at_2 = next(e for e in reversed(both.history) if e["step"] == 2)
    assert at_2["circuit/second/identity_retention"] == 1.0
    assert at_2["circuit/first/identity_retention"] != 1.0
    other = circuit("first", roles=(Role("induction", (Head(0, 0),)),))
    with pytest.raises(ValueError, match=r"base for circuit 'first' is of another circuit .* new"):
        fit(CircuitMonitor(other, **options), ckpt_path=checkpoint)


def test_two_circuits_from_files_and_by_name(tmp_path):
    one, two = circuit("one"), circuit("two", roles=ROLES[1:])
    save_circuit(one, tmp_path / "one.yaml")
    monitor = CircuitMonitor([str(tmp_path / "one.yaml"), two], rows=8, causal=False)
    fit(monitor)
    last = monitor.history[-1]
    assert "circuit/one/previous-token/score" in last
    assert "circuit/two/previous-token/score" not in last
    assert last["circuit/one/induction/score"] == last["circuit/two/induction/score"]
    assert not any("causal" in key for key in last)
    assert len(monitor.heads.rows) == 2 * (3 + 1)
    named = CircuitMonitor({"here": tmp_path / "one.yaml"}, rows=8)
    assert [c.name for c in named.circuits] == ["here"]


def test_validation_alone(useful):
    task = CausalLM(build_embedded(0))
    data = KeyValueMap(8, 8, batch_size=8)
    monitor = CircuitMonitor(useful, rows=ROWS)
    trainer_for([monitor]).validate(task, data, verbose=False)
    (entry,) = monitor.history
    assert entry["circuit/repeats/behaviour"] > 0
    assert not any("retention" in key for key in entry)
    assert monitor.heads.rows == []
    fit(monitor)
    trained = trainer_for([monitor])
    trained.validate(task, data, verbose=False)
    assert monitor.history[-1]["circuit/repeats/identity_retention"] == pytest.approx(1.0)


def test_not_before_training_and_never_twice(useful):
    """Sanity checks see no base yet; step and validation often fall on the same step."""
    monitor = CircuitMonitor(useful, every_n_steps=1, rows=ROWS)
    fit(monitor, val_check_interval=1, num_sanity_val_steps=1)
    assert steps(monitor) == [0, 1, 2, 3, 4, 5]
    quiet = CircuitMonitor(useful, at_validation=False, rows=ROWS)
    fit(quiet, val_check_interval=1)
    assert steps(quiet) == [0]
    # The same callback in another training starts anew.
    fit(monitor, max_steps=2)
    assert steps(monitor) == [0, 1, 2]


def test_manual_optimization_counts_batches(useful):
    class TwoOptimizers(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build_embedded(0)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = self.model(input_ids=batch["input_ids"]).logits.square().mean()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            halves = list(self.parameters())[::2], list(self.parameters())[1::2]
            return [torch.optim.SGD(half, lr=0.1) for half in halves]

    monitor = CircuitMonitor(useful, every_n_steps=2, rows=ROWS)
    trainer = trainer_for([monitor])
    trainer.fit(TwoOptimizers(), KeyValueMap(40, 8, batch_size=8).train_dataloader())
    assert trainer.global_step == 10
    assert steps(monitor) == [0, 2, 4]


def test_a_retention_that_says_nothing_is_not_logged():
    model = build_embedded(0)
    with torch.no_grad():  # It always says token 0, which is never the answer.
        model.model.norm.weight.fill_(0)
    monitor = CircuitMonitor(circuit(), every_n_steps=1, rows=8)
    with pytest.warns(UserWarning, match="is not logged") as caught:
        fit(monitor, model=model, max_steps=2)
    messages = [str(w.message) for w in caught if "is not logged" in str(w.message)]
    assert len(messages) == 2
    assert "circuit/repeats/causal_retention is not logged" in messages[0]
    assert "circuit/repeats/behaviour_retention is not logged" in messages[1]
    assert set(monitor.history[-1]) == {
        "step",
        "circuit/repeats/previous-token/score",
        "circuit/repeats/induction/score",
        "circuit/repeats/behaviour",
        "circuit/repeats/causal_effect_nats",
        "circuit/repeats/identity_retention",
        *(f"circuit/repeats/{role.name}/{kind}" for role in ROLES for kind in ("lost", "risen")),
    }


class Moving(CircuitMonitor):
    """From the second measurement on, the induction head seems to be the next one."""

    def measure(self, trainer, pl_module, step):
        with pytest.MonkeyPatch.context() as patch:
            if step:
                patch.setattr(monitor_module, "measure_circuit", self.moved)
            else:
                patch.setattr(monitor_module, "measure_circuit", self.whole)
            return super().measure(trainer, pl_module, step)

    def whole(self, backend, circuit, batch, causal, index=2):
        found = measure_circuit(backend, circuit, batch, causal)
        scores = torch.full_like(found.scores["induction"], 0.01)
        scores[:, 1, index] = 0.9
        return replace(found, scores={**found.scores, "induction": scores})

    def moved(self, *given):
        return self.whole(*given, index=3)


def test_a_circuit_that_moved_is_told_once():
    monitor = Moving(circuit(), every_n_steps=1, rows=8, causal=False)
    with pytest.warns(UserWarning, match="has moved") as caught:
        fit(monitor, max_steps=3)
    told = [str(w.message) for w in caught if "has moved" in str(w.message)]
    assert told == ["circuit/repeats/induction has moved: L1H2 lost it and L1H3 took it up"]
    keys = [f"circuit/repeats/induction/{kind}" for kind in ("lost", "risen")]
    assert [[entry[key] for key in keys] for entry in monitor.history] == [[0, 0]] + [[1, 1]] * 3


def test_a_logger_that_fails_does_not_end_the_training(useful, tmp_path):
    class Down(Logger):
        name, version = "down", 0
        calls = 0

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            if any(key.startswith("circuit/") for key in metrics):
                self.calls += 1
                raise ConnectionError("no route to host")

    down, up = Down(), CSVLogger(tmp_path)
    monitor = CircuitMonitor(useful, every_n_steps=1, rows=ROWS)
    with pytest.warns(UserWarning, match="could not log") as caught:
        trainer = fit(monitor, [down, up])
    messages = [str(w.message) for w in caught if "could not log" in str(w.message)]
    assert len(messages) == 1
    assert messages[0].startswith("Down could not log (ConnectionError: no route to host)")
    assert trainer.global_step == 5
    assert down.calls == 6
    assert len(read_csv(Path(up.log_dir) / "heads.csv")) == 6 * 3


def test_tensorboard(useful, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    monitor = CircuitMonitor(useful, every_n_steps=2, rows=ROWS)
    fit(monitor, [logger])
    events = EventAccumulator(logger.log_dir).Reload()
    for key in monitor.history[0]:
        if key != "step":
            found = [(event.step, event.value) for event in events.Scalars(key)]
            expected = [(e["step"], pytest.approx(e[key], abs=1e-6)) for e in monitor.history]
            assert found == expected
    images = events.Images("circuit/repeats/heads")
    assert [image.step for image in images] == [0, 2, 4, 5]
    assert (images[-1].width, images[-1].height) == (4 * IMAGE_CELL_PX, 3 * IMAGE_CELL_PX)
    (tag,) = [t for t in events.Tags()["tensors"] if t.startswith("circuit/repeats/heads")]
    text = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    assert "previous-token L0H1 · previous-token L0H3" in text


def test_mistakes():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        CircuitMonitor(circuit(), every_n_steps=0)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        CircuitMonitor(circuit(), rows=0)
    with pytest.raises(ValueError, match=r"alert_below is a share .* got 90"):
        CircuitMonitor(circuit(), alert_below=90.0)
    with pytest.raises(ValueError, match="circuits is empty"):
        CircuitMonitor([])
    with pytest.raises(ValueError, match=r"two circuits have the name 'repeats'.*a mapping"):
        CircuitMonitor([circuit(), circuit()])
    outside = circuit(roles=(Role("induction", (Head(2, 0),)),))
    with pytest.raises(ValueError, match="L2H0 is outside the model"):
        fit(CircuitMonitor(outside, rows=8))


def test_long_series_are_thinned_and_names_are_escaped():
    of = circuit("a<b", roles=(Role("<i>", (Head(0, 0), Head(1, 1))),))
    history = HeadHistory()
    rows = [
        (step, of.name, "<i>", head, score, None)
        for step in range(0, 3000, 10)
        for head, score in (("L0H0", step / 3000), ("L1H1", None))
    ]
    history.rows += rows
    history.maps[of.name] = {"<i>": torch.tensor([[0.5, float("nan")], [0.0, 1.0]])}
    found, labels, scores, _ = history.scores(of)
    assert (found[0], found[-1], len(found)) == (0, 2990, 120)
    assert labels == ["<i> L0H0", "<i> L1H1"]
    assert scores[0, -1] == pytest.approx(2990 / 3000)
    assert scores[1].isnan().all()
    page = history.html(of)
    assert "<i>" not in page
    assert "a<b" not in page
    assert page.count("<rect") == 2 * 120 + 4 + 2 + 41
    assert history.top(of) == 1.0
    table = history.long_rows(100)
    assert (table[0][0], table[-1][0]) == (0, 2990)
    assert {row[3:5] for row in table} == {("L0H0", "score")}  # what has no number has no row
    assert 20 < len(table) <= 100
    assert len(history.long_rows(10_000)) == 300
    assert [row[0] for row in history.long_rows(1)] == [2990]
    # Low scores get the whole range of colours: the darkest stands for .25 then.
    history.rows = [(*row[:4], row[4] and row[4] / 5, None) for row in rows]
    history.maps[of.name]["<i>"] /= 10
    assert history.top(of) == 0.25
    assert "L1H1: .10" in history.html(of)
    assert history.image(of).shape == (3, 2 * IMAGE_CELL_PX, 120 * IMAGE_CELL_PX)


def test_colours():
    found = colours(torch.tensor([0.0, 0.125, 1.0, 2.0, float("nan")])).tolist()
    assert found == [[238, 242, 246], [213, 226, 238], [8, 48, 95], [8, 48, 95], [255, 255, 255]]
