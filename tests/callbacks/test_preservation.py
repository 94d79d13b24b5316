"""Run as a script, this file trains in as many processes as its argument says: see `main`."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from circuitkeep.callbacks.added_loss import add_loss, remove_loss
from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.callbacks.processes import LightningTraining
from circuitkeep.callbacks.unsupported import refuse_unsupported
from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.guard.due import Due
from circuitkeep.penalties import (
    BehaviourKL,
    HeadScoreFloor,
    PatternDivergence,
    Sum,
)
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Question, guard_rows

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0), Head(1, 1))), Role("previous-token", (Head(0, 3),))),
    {
        "_target_": "circuitkeep.probes.RepeatedTokens",
        "length": 12,
        "segment": [3, 4],
        "prefix": [0, 1],
    },
    "accuracy",
    "made up",
)


def gpt2(seed=0, dropout=0.0, dtype=torch.float32):
    """Two layers of four heads; in float64 everything in it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 36, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
        drop = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
        ends = {"bos_token_id": 32, "eos_token_id": 33}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **drop, **ends)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


def task_loss(model, tokens):
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Task(LightningModule):
    """Anybody's module, which knows nothing of circuits."""

    def __init__(self, model, returns="tensor", lr=0.05, fails_at=None):
        super().__init__()
        self.model, self.returns, self.lr, self.fails_at = model, returns, lr, fails_at
        self.losses, self.steps = [], 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.fails_at == batch_idx:
            raise RuntimeError("the user's own error")
        loss = task_loss(self.model, batch[0])
        self.losses.append(loss.item())
        if self.returns == "none" and batch_idx % 2:
            return None
        return {"loss": loss, "more": 1} if self.returns == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Gradients(Callback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = (p.grad for p in pl_module.parameters())
        self.seen.append([None if grad is None else grad.clone() for grad in grads])


def loader(rows=8, batch_size=4, shuffle=False, rank=0, processes=1):
    tokens = torch.randint(0, 32, (rows, 10), generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(tokens[rank::processes]), batch_size, shuffle=shuffle)


def trainer_of(folder, *callbacks, **options):
    return Trainer(
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


def guard(**options):
    options = {"rows_per_step": 6, "pool_rows": 6, **options}
    return CircuitPreservation(options.pop("circuit", CIRCUIT), **options)


def fit(folder, task, *callbacks, data=None, ckpt_path=None, **options):
    trainer = trainer_of(folder, *callbacks, **options)
    trainer.fit(task, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def weights_of(task):
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def clean(task):
    """Whether no method of the module was replaced."""
    return not {"training_step", "manual_backward"} & set(vars(task))


def penalty_by_hand(model, base, weights=(1.0, 1.0)):
    """The default penalty on the whole pool, by loops, from what transformers returns."""
    batch = probe_rows(CIRCUIT, attach(base), None, "train", 6, 0)
    outputs = []
    for subject in (model, base):
        implementation = subject.config._attn_implementation
        subject.set_attn_implementation("eager")
        with torch.set_grad_enabled(subject is model):
            out = subject(batch.tokens, output_attentions=True)
        subject.set_attn_implementation(implementation)
        outputs.append((out.attentions, out.logits.log_softmax(-1)))
    (now, now_log), (was, was_log) = outputs
    roles = {head: [r.name for r in CIRCUIT.roles if head in r.heads] for head in CIRCUIT.heads}
    pattern = behaviour = 0.0
    for row in range(6):
        for head, names in roles.items():
            target = torch.stack([batch.targets[n][row] for n in names]).any(0)
            queries = [q for q in range(12) if target[q].any()]
            for query in queries:
                before = was[head.layer][row, head.index, query, : query + 1]
                after = now[head.layer][row, head.index, query, : query + 1]
                kl = (before * (before.log() - after.log())).sum()
                pattern = pattern + kl / len(queries) / (6 * len(roles))
        asked = batch.answer_position[batch.answer_row == row]
        for position in asked.tolist():
            before, after = was_log[row, position], now_log[row, position]
            kl = (before.exp() * (before - after)).sum()
            behaviour = behaviour + kl / len(asked) / 6
    return weights[0] * pattern + weights[1] * behaviour


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("idle", ["none", "weight 0", "never below its floor"])
def test_an_idle_callback_changes_no_bit(tmp_path, precision, idle):
    """With dropout and shuffling: neither the order of the data nor any mask may move."""
    runs = []
    for callbacks in (
        [],
        {
            "none": [],
            "weight 0": [guard(weight=0.0)],
            "never below its floor": [guard(penalty=HeadScoreFloor(margin=0.999))],
        }[idle],
    ):
        torch.manual_seed(1)
        task = Task(gpt2(dropout=0.3))
        fit(
            tmp_path,
            task,
            *callbacks,
            data=loader(24, shuffle=True),
            precision=precision,
            max_epochs=2,
        )
        runs.append((task.losses, weights_of(task), torch.rand(3)))
    (losses, weights, drawn), (other_losses, other_weights, other_drawn) = runs
    assert losses == other_losses
    assert torch.equal(weights, other_weights)
    assert torch.equal(drawn, other_drawn)


@pytest.mark.parametrize("returns", ["tensor", "dict"])
def test_the_gradient_is_that_of_the_sum(tmp_path, returns):
    """Two optimizer steps of two batches each; the penalty is due in the first, doubled."""
    task, gradients = Task(gpt2(dtype=torch.float64), returns), Gradients()
    callback = guard(weight=0.7, every_n_steps=2)
    fit(tmp_path, task, callback, gradients, data=loader(16), accumulate_grad_batches=2)
    model, base = gpt2(dtype=torch.float64), gpt2(dtype=torch.float64)
    with torch.no_grad():  # at the base, the penalty is 0 and so is its gradient
        assert penalty_by_hand(model, base).item() == pytest.approx(0, abs=1e-12)
    batches = [tokens for (tokens,) in loader(16)]
    for step in range(2):
        model.zero_grad()
        loss = sum(task_loss(model, tokens) for tokens in batches[2 * step : 2 * step + 2]) / 2
        if step == 0:
            loss = loss + 0.7 * 2 * penalty_by_hand(model, base)
        loss.backward()
        for one, parameter in zip(gradients.seen[step], model.parameters(), strict=True):
            assert_close(one, parameter.grad, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
    assert clean(task)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_away_from_the_base(tmp_path, accumulate):
    """The reference is of another model than the one in training, as after some steps."""
    base = gpt2(dtype=torch.float64)
    path = tmp_path / "base.safetensors"
    fit(tmp_path, Task(base, lr=0.0), guard(reference=path), max_steps=1)
    task, gradients = Task(gpt2(seed=1, dtype=torch.float64), lr=0.0), Gradients()
    callback = guard(weight=0.7, every_n_steps=2, warmup_steps=4, reference=path)
    callback.load_state_dict({"reference": str(path)})  # as a resumed run does
    fit(
        tmp_path,
        task,
        callback,
        gradients,
        data=loader(12 * accumulate),
        accumulate_grad_batches=accumulate,
    )
    assert len(gradients.seen) == 3
    batches = [tokens for (tokens,) in loader(12 * accumulate)]
    for step in range(3):
        model = gpt2(seed=1, dtype=torch.float64)
        part = batches[accumulate * step : accumulate * (step + 1)]
        loss = sum(task_loss(model, tokens) for tokens in part) / accumulate
        if step != 1:
            loss = loss + 0.7 * 2 * (step + 1) / 4 * penalty_by_hand(model, base)
        loss.backward()
        for one, parameter in zip(gradients.seen[step], model.parameters(), strict=True):
            assert_close(one, parameter.grad, rtol=1e-12, atol=1e-12)


class TwoOptimizers(Task):
    """Manual optimization of two halves of the model, in one backward pass or in two."""

    def __init__(self, model, passes):
        super().__init__(model)
        self.automatic_optimization = False
        self.passes = passes

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for _ in range(self.passes):
            self.manual_backward(task_loss(self.model, batch[0]), retain_graph=False)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        halves = self.model.transformer.h[0].parameters(), self.model.transformer.h[1].parameters()
        return [torch.optim.SGD(half, lr=0.05) for half in halves]


@pytest.mark.parametrize("passes", [1, 2])
def test_manual_optimization(tmp_path, passes):
    base = gpt2(dtype=torch.float64)
    path = tmp_path / "base.safetensors"
    fit(tmp_path, Task(base, lr=0.0), guard(reference=path), max_steps=1)
    task = TwoOptimizers(gpt2(seed=1, dtype=torch.float64), passes)
    callback, gradients = guard(weight=0.7, reference=path), Gradients()
    callback.load_state_dict({"reference": str(path)})
    evaluated = []
    callback.penalty.terms["pattern"].register_forward_hook(lambda *args: evaluated.append(1))
    fit(tmp_path, task, callback, gradients)
    assert len(evaluated) == 2, "once per training step, however many backward passes"
    model = gpt2(seed=1, dtype=torch.float64)
    tokens = next(iter(loader()))[0]
    (passes * task_loss(model, tokens) + 0.7 * penalty_by_hand(model, base)).backward()
    for one, parameter in zip(gradients.seen[0], model.parameters(), strict=True):
        assert_close(one, parameter.grad, rtol=1e-12, atol=1e-12)
    assert clean(task)


def test_a_skipped_batch_stays_skipped(tmp_path):
    task, gradients = Task(gpt2(), "none"), Gradients()
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(tmp_path, task, guard(), gradients, data=loader(16))
    assert task.steps == 4
    assert len(gradients.seen) >= 2


def test_a_mapping_without_a_loss_is_lightnings_to_refuse(tmp_path):
    class Forgetful(Task):
        def training_step(self, batch, batch_idx):
            return {"lost": super().training_step(batch, batch_idx)}

    with pytest.raises(Exception, match="'loss' key needs to be present"):
        fit(tmp_path, Forgetful(gpt2()), guard())


@pytest.mark.parametrize("turned", [False, True])
def test_two_callbacks_in_either_order(tmp_path, turned):
    heads = {"induction": [Head(1, 2)], "previous-token": [Head(0, 0)]}
    pair = [guard(), guard(circuit=CIRCUIT.with_heads(heads, "other"))]
    task = Task(gpt2(dtype=torch.float64))
    fit(tmp_path, task, *(pair[::-1] if turned else pair))
    assert clean(task)
    task_of_one = Task(gpt2(dtype=torch.float64))
    fit(tmp_path, task_of_one, guard())
    assert not torch.allclose(weights_of(task), weights_of(task_of_one))
    again = Task(gpt2(dtype=torch.float64))
    pair = [guard(), guard(circuit=CIRCUIT.with_heads(heads, "other"))]
    fit(tmp_path, again, *(pair if turned else pair[::-1]))
    assert_close(weights_of(again), weights_of(task), rtol=1e-12, atol=1e-12)
    assert len(list((tmp_path / "references").iterdir())) == 2


def test_sources_may_leave_in_any_order():
    task = Task(gpt2())
    own = task.training_step
    task.training_step = own  # a user's own patch on the instance
    backend = attach(task.model)
    rows = guard_rows(probe_rows(CIRCUIT, backend, None, "train", 2, 0), CIRCUIT, False)
    question = Question(rows, CIRCUIT, frozenset({"pattern"}))

    def source(number):
        due = Due(backend, question, lambda now, reach: torch.tensor(float(number)))
        return lambda: due

    losses = [source(number) for number in (1, 2)]
    tokens = next(iter(loader()))
    plain = own(tokens, 0).item()
    for loss in losses:
        add_loss(task, loss)
    assert task.training_step(tokens, 0).item() == pytest.approx(plain + 3)
    assert task.training_step.__wrapped__ is own
    remove_loss(task, losses[0])
    assert task.training_step(tokens, 0).item() == pytest.approx(plain + 2)
    remove_loss(task, losses[0])  # again: ignored
    remove_loss(task, losses[1])
    assert vars(task)["training_step"] is own


@pytest.mark.parametrize(
    ("penalties", "passes"),
    [
        ((None, None), 1),
        ((PatternDivergence(), PatternDivergence()), 1),
        ((PatternDivergence(), None), 2),  # patterns alone stop early, so they go by themselves
    ],
)
def test_two_circuits_share_a_pass(tmp_path, penalties, passes):
    heads = {"induction": [Head(0, 2)], "previous-token": [Head(0, 0)]}
    other = CIRCUIT.with_heads(heads, "other")
    other = replace(other, probe={**other.probe, "length": 16})
    task, widths = Task(gpt2()), []
    task.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    pair = [
        guard(circuit=circuit, penalty=penalty)
        for circuit, penalty in zip((CIRCUIT, other), penalties, strict=True)
    ]
    fit(tmp_path, task, *pair, max_steps=3)
    last = widths[-1 - passes :]
    assert last == [*([(12, 16)] if passes == 1 else [(6, 12), (6, 16)]), (4, 10)]


def test_an_exception_leaves_the_module_as_it_was(tmp_path):
    task = Task(gpt2(), fails_at=1)
    callback = guard()
    with pytest.raises(RuntimeError, match="the user's own error"):
        fit(tmp_path, task, callback)
    assert clean(task)
    assert callback._backend is None
    task.fails_at = None
    fit(tmp_path / "again", task, guard())
    assert clean(task)


class Validated(Task):
    def validation_step(self, batch, batch_idx):
        self.log("val", task_loss(self.model, batch[0]))

    def test_step(self, batch, batch_idx):
        self.log("test", task_loss(self.model, batch[0]))


def test_validating_and_testing(tmp_path):
    task = Validated(gpt2())
    trainer = trainer_of(tmp_path, guard(), limit_val_batches=1)
    trainer.validate(task, loader(), verbose=False)
    trainer.test(task, loader(), verbose=False)
    assert clean(task)
    trainer.fit(task, loader(), loader())
    assert clean(task)
    trainer.validate(task, loader(), verbose=False)
    trainer.test(task, loader(), verbose=False)
    assert clean(task)


def test_a_penalty_that_is_not_finite(tmp_path):
    task = Task(gpt2(), lr=float("inf"))
    with pytest.raises(ValueError, match=r"circuit 'guarded' is nan at step 1 \(term 'pattern'\)"):
        fit(tmp_path, task, guard())
    assert clean(task)


def without_gradient(layer):
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: torch.no_grad()(forward)(*args, **kwargs)


def on_copies(layer):
    for module in layer.modules():
        if module._parameters:
            module.forward = copy.deepcopy(module).forward


def reentrant(layer):
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: checkpoint(
        lambda *given: forward(*given, **kwargs), *args, use_reentrant=True
    )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("spoil", [without_gradient, on_copies, reentrant])
@pytest.mark.parametrize("penalty", [None, PatternDivergence()])
def test_a_layer_that_the_gradient_does_not_reach(tmp_path, spoil, penalty):
    """Layer 0 is read by the guarded heads of layer 1; the task itself goes on training."""
    task = Task(gpt2())
    spoil(task.model.transformer.h[0])
    with pytest.raises(ValueError, match=r"'guarded' (does not reach .* of layer 0|reaches no)"):
        fit(tmp_path, task, guard(penalty=penalty))
    assert clean(task)


def test_a_term_that_is_cut_off(tmp_path):
    class Cut(PatternDivergence):
        def forward(self, now, reference, labels):
            return super().forward(now, reference, labels).detach()

    task = Task(gpt2())
    with pytest.raises(ValueError, match=r"reaches no trainable parameter \(term 'cut'\)"):
        fit(tmp_path, task, guard(penalty=Sum({"cut": Cut(), "kl": BehaviourKL()})))
    assert clean(task)


def test_a_strategy_that_was_not_shown_to_be_right():
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # its own needs deepspeed
    strategy.config = {"zero_optimization": {"stage": 3}}
    trainer = SimpleNamespace(strategy=strategy)
    with pytest.raises(ValueError, match=r"ZeRO stage 3 has not been shown to be right.*stage 2"):
        refuse_unsupported(trainer, Task(gpt2()))


def test_a_softcap_that_the_kernel_leaves_out(tmp_path, tiny_model):
    task = Task(tiny_model("gemma2").train())
    task.model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"caps its attention scores at 0.5.*'eager'"):
        fit(tmp_path, task, guard())
    task.model.set_attn_implementation("eager")
    fit(tmp_path, task, guard())


def test_a_model_that_cannot_learn_it(tmp_path):
    task = Task(gpt2())
    task.model.transformer.requires_grad_(False)
    task.model.lm_head.weight = torch.nn.Parameter(task.model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match=r"circuit 'guarded' reaches no trainable parameter"):
        fit(tmp_path, task, guard(penalty=PatternDivergence()))
    assert clean(task)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(tmp_path, reentrant):
    """Reentrant checkpointing loses gradients; probe rows are never checkpointed."""
    seen = []
    for checkpointing in (False, True):
        task, gradients = Task(gpt2(seed=1)), Gradients()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            task.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            task.model.enable_input_require_grads()
        fit(tmp_path, task, guard(weight=3.0), gradients)
        seen.append(gradients.seen)
    for one, other in zip(*seen, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_a_compiled_model(tmp_path, way):
    seen = []
    for compiled in (False, True):
        model = gpt2(seed=1)
        if compiled and way == "wrapped":
            model = torch.compile(model, backend="eager")
        elif compiled:
            model.compile(backend="eager")
        task, gradients = Task(model), Gradients()
        fit(tmp_path, task, guard(weight=3.0), gradients)
        seen.append(gradients.seen)
    for one, other in zip(*seen, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_learning_less_than_without(tmp_path):
    """What it is for: the guarded circuit drifts less."""
    drift = {}
    for weight in (0.0, 10.0):
        task = Task(gpt2(dtype=torch.float64), lr=0.05)
        fit(tmp_path, task, guard(weight=weight), data=loader(32), max_epochs=3)
        with torch.no_grad():
            drift[weight] = penalty_by_hand(task.model, gpt2(dtype=torch.float64)).item()
    assert drift[10.0] < 0.2 * drift[0.0]


def test_rows_are_drawn_anew_each_step(tmp_path):
    drawn = []

    class Watched(PatternDivergence):
        def forward(self, now, reference, labels):
            drawn.append(reference.pattern.sum((1, 2)))
            return super().forward(now, reference, labels)

    def run(**options):
        drawn.clear()
        callback = guard(penalty=Watched(), rows_per_step=2, pool_rows=8, **options)
        fit(tmp_path, Task(gpt2()), callback, data=loader(16))
        return torch.stack(drawn)

    one, same, other = run(), run(), run(seed=1)
    assert one.shape[:2] == (4, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)


def test_one_row_is_drawn_on_one_process(tmp_path):
    """What two draw is in `test_strategies` and `tests/integrations`."""
    drawn = []

    class Watched(PatternDivergence):
        def forward(self, now, reference, labels):
            drawn.append(len(reference.pattern))
            return super().forward(now, reference, labels)

    fit(tmp_path, Task(gpt2()), CircuitPreservation(CIRCUIT, Watched(), pool_rows=8))
    assert drawn == [1, 1]


def test_more_processes_than_rows_are_refused(tmp_path, monkeypatch):
    place = {"rank": 0, "num_replicas": 3}
    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", property(lambda self: place))
    training = LightningTraining(trainer_of(tmp_path), Task(gpt2()))
    with pytest.raises(ValueError, match="rows_per_step=3 is more than pool_rows=2"):
        CircuitPreservation(CIRCUIT, pool_rows=2).rows_of(training)
    assert CircuitPreservation(CIRCUIT, pool_rows=3).rows_of(training) == 3


class Remember(Logger):
    name, version = "remember", 0

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_logging(tmp_path):
    logger = Remember()
    data = loader(16)
    penalty = Sum({"pattern": PatternDivergence(), "kl": BehaviourKL()}, {"kl": 3.0})
    callback = guard(penalty=penalty)
    fit(tmp_path, Task(gpt2()), callback, data=data, logger=logger, log_every_n_steps=2)
    own = [(step, values) for step, values in logger.seen if "circuit/guarded/penalty" in values]
    assert [step for step, _ in own] == [0, 2]
    values = own[1][1]
    assert values.keys() == {
        "circuit/guarded/penalty",
        "circuit/guarded/penalty/pattern",
        "circuit/guarded/penalty/kl",
    }
    assert values["circuit/guarded/penalty"] == pytest.approx(
        values["circuit/guarded/penalty/pattern"] + 3 * values["circuit/guarded/penalty/kl"]
    )
    assert values["circuit/guarded/penalty"] > 0


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(callback, name, ckpt_path=None, seed=0):
        task = Task(gpt2(seed=seed))
        task.configure_optimizers = lambda: torch.optim.AdamW(task.parameters(), lr=1e-2)
        saving = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1)
        options = {"max_epochs": 3, "enable_checkpointing": True}
        fit(tmp_path, task, callback, saving, ckpt_path=ckpt_path, **options)
        return task

    whole = run(guard(weight=3.0), "whole")
    checkpoint = tmp_path / "whole" / "epoch=0.ckpt"
    reference = list((tmp_path / "references").iterdir())
    assert len(reference) == 1
    stamp = reference[0].read_bytes()
    for name, options in {"found": {}, "named": {"reference": reference[0]}}.items():
        callback = guard(weight=3.0, **options)
        # Another seed: nothing but the checkpoint may bring the weights.
        resumed = run(callback, name, checkpoint, seed=9)
        assert resumed.steps == 4
        assert torch.equal(weights_of(resumed), weights_of(whole))
        assert list((tmp_path / "references").iterdir()) == reference
        assert reference[0].read_bytes() == stamp
        assert not callback._resumed, "the next fit is not a resumed one"
    reference[0].unlink()
    with pytest.raises(FileNotFoundError, match="no reference file at"):
        run(guard(weight=3.0), "lost", checkpoint)


def test_the_reference_is_kept_and_checked(tmp_path):
    path = tmp_path / "base.safetensors"
    fit(tmp_path, Task(gpt2()), guard(reference=path))
    stamp = path.stat().st_mtime_ns
    fit(tmp_path, Task(gpt2()), guard(reference=path))
    assert path.stat().st_mtime_ns == stamp, "the same base: used as it is"
    with pytest.raises(ValueError, match=r"base.safetensors is of another model .*delete it"):
        fit(tmp_path, Task(gpt2(seed=1)), guard(reference=path))
    with pytest.raises(ValueError, match="of another probe"):
        fit(tmp_path, Task(gpt2()), guard(reference=path, pool_rows=7))
    with pytest.raises(ValueError, match="of another needs"):
        fit(tmp_path, Task(gpt2()), guard(reference=path, penalty=PatternDivergence()))
    task = Task(gpt2())
    callback = guard()
    fit(tmp_path, task, callback)
    fit(tmp_path, task, callback)  # every fit starts from a base of its own
    assert len(list((tmp_path / "references").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {
                "circuit": CIRCUIT.with_heads(
                    {"induction": [Head(2, 0)], "previous-token": [Head(0, 0)]}, "x"
                )
            },
            "L2H0 is outside the model",
        ),
        (
            {"probe": RepeatedTokens(length=30)},
            "30 tokens is longer than the model's context of 24",
        ),
        (
            {
                "circuit": Circuit(
                    "x", (Role("mover", (Head(0, 0),)),), CIRCUIT.probe, "accuracy", "s"
                )
            },
            "'mover'",
        ),
        ({"model": "net"}, "model='net'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, options, message):
    task = Task(gpt2())
    before = weights_of(task)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, task, guard(**options))
    assert torch.equal(weights_of(task), before)
    assert clean(task)


def test_two_models_need_a_name(tmp_path):
    task = Task(gpt2())
    task.teacher = gpt2(seed=1).requires_grad_(False)
    with pytest.raises(ValueError, match="'model', 'teacher'"):
        fit(tmp_path, task, guard())
    fit(tmp_path, task, guard(model="model"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be >= 0, got -1.0"),
        ({"weight": float("nan")}, "weight must be >= 0"),
        ({"every_n_steps": 0}, "every_n_steps must be >= 1"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0"),
        ({"rows_per_step": 9}, "rows_per_step=9 is more than pool_rows=6"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        guard(**options)


def test_a_circuit_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no circuit file"):
        guard(circuit=tmp_path / "none.yaml")


def train_in(processes, folder):
    """Two steps on 4 rows each, whatever the number of processes; 3 probe rows, so uneven."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    task, gradients = Task(gpt2(dtype=torch.float64), lr=0.5), Gradients()
    callback = guard(weight=0.7, rows_per_step=3, pool_rows=3, reference=folder / "base.st")
    fit(
        folder,
        task,
        callback,
        gradients,
        data=loader(8, 4 // processes, rank=rank, processes=processes),
        use_distributed_sampler=False,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
    )
    return gradients.seen


def main():
    """Train in two processes; the first one writes what it saw."""
    folder = Path(sys.argv[1])
    seen = train_in(2, folder)
    if torch.distributed.get_rank() == 0:
        torch.save(seen, folder / "seen.pt")


def test_two_processes_train_as_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    together = torch.load(tmp_path / "seen.pt")
    alone = train_in(1, tmp_path / "alone")
    assert len(together) == len(alone) == 2
    for one, other in zip(together, alone, strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    main()


def test_mixed_precision_is_guarded(tmp_path, tiny_model):
    free, held = Task(tiny_model("llama").train()), Task(tiny_model("llama").train())
    fit(tmp_path / "free", free, precision="bf16-mixed")
    fit(tmp_path / "held", held, guard(), precision="bf16-mixed")
    assert held.losses[0] == free.losses[0]
    assert not torch.equal(weights_of(held), weights_of(free))
    assert weights_of(held).isfinite().all()
