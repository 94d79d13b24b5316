import copy

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.callbacks.resume import ExactResume
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.tasks.grpo import GRPO
from circuitkeep.tasks.key_value_prompts import KeyValuePrompts
from circuitkeep.tasks.rewards import AnswerMatch
from circuitkeep.tasks.rollouts import Rollout, Sampling

WITHOUT_TRAINER = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
# The resumed runs write no checkpoints of their own.
RESUMED = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [4, 5]},
    "accuracy",
    "made up",
)


def even(completions):
    """By chance alone hardly any answer is right; half of all tokens are even."""
    return (completions.tokens % 2 == 0).float().sum(1)


def equal(completions):
    return torch.full((len(completions.tokens),), 0.1)


def make(seed=0, reward=even, dtype=torch.float32, **options):
    options = {"group_size": 4, "sampling": Sampling(2), "lr": 1e-2, **options}
    return GRPO(build_embedded(seed).to(dtype), {"reward": reward}, **options)


def data(rows=16):
    return KeyValuePrompts(train_rows=rows, val_rows=2, batch_size=4, pairs=3)


class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([p.grad.clone() for p in pl_module.parameters()])


def fit(task, *callbacks, seed=1, ckpt_path=None, **options):
    torch.manual_seed(seed)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_steps": 4,
            "limit_val_batches": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )
    trainer.fit(task, datamodule=data(), ckpt_path=ckpt_path)
    return trainer


def weights(task):
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def batch():
    return next(iter(data().train_dataloader()))


@WITHOUT_TRAINER
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_the_loss_is_that_of_a_loop(loss):
    """The second update of a rollout, away from the policy that sampled it, with a reference."""
    task = make(updates_per_rollout=2, kl_weight=0.3, loss=loss, sampling=Sampling(3))
    task.training_step(batch(), 0)
    rollout = task._rollout
    # As if some completions had ended early.
    sampled = rollout.sampled.clone()
    sampled[::2, -1] = False
    task._rollout = Rollout(**{**vars(rollout), "sampled": sampled})
    before = task.log_probs(rollout).detach()
    base = copy.deepcopy(task.model)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = task.training_step(batch(), 1)
    assert torch.equal(task._rollout.tokens, rollout.tokens)
    now, reference = task.log_probs(rollout), task.log_probs(rollout, base)
    total = 0.0
    for row, reward in enumerate(rollout.rewards.tolist()):
        group = rollout.rewards[row // 4 * 4 : row // 4 * 4 + 4]
        advantage = (reward - group.mean()) / (group.std() + 1e-4) if len(group.unique()) > 1 else 0
        places = [t for t in range(now.shape[1]) if sampled[row, t + 1]]
        for t in places:
            ratio = (now[row, t] - before[row, t]).exp()
            surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            delta = reference[row, t] - now[row, t]
            kl = delta.exp() - delta - 1
            count = 3 if loss == "dr_grpo" else len(places)
            total = total - (surrogate - 0.3 * kl) / count / len(rollout.rewards)
    assert_close(found, total)
    task.training_step(batch(), 2)
    assert task._updates == 1, "a fresh rollout after two updates"


@WITHOUT_TRAINER
@pytest.mark.parametrize("reward", [equal, AnswerMatch()], ids=["all equal", "all 0"])
def test_without_advantage_there_is_no_gradient(reward):
    rows = batch()
    rows["answer"] = torch.full_like(rows["answer"], 999)
    for kl_weight in (0.0, 0.5):
        task = make(reward=reward, kl_weight=kl_weight)
        loss = task.training_step(rows, 0)
        loss.backward()
        assert loss.item() == 0
        assert not any(p.grad.any() for p in task.parameters())
        if kl_weight:  # away from the reference, its gradient is left
            with torch.no_grad():
                task.model.lm_head.weight.add_(torch.randn_like(task.model.lm_head.weight))
            task.training_step(rows, 1).backward()
            assert task.model.lm_head.weight.grad.any()
            assert all(p.grad.isfinite().all() for p in task.parameters())


def test_it_learns_and_logs():
    torch.manual_seed(0)
    task = make(group_size=8, lr=1e-2, kl_weight=1e-3, updates_per_rollout=2)
    trainer = fit(task, max_steps=16, limit_val_batches=1)
    metrics = trainer.callback_metrics
    assert metrics["train/reward"] > 1.5, "by chance it is 1 of 2"
    assert metrics["val/reward"] > 1.5
    assert {f"train/{name}" for name in ("reward_std", "completion_tokens", "kl_nats")} <= {
        *metrics
    }
    assert 0 <= metrics["train/clip_fraction"] < 1
    assert 0 <= metrics["train/fraction_without_advantage"] <= 1
    assert metrics["train/kl_nats"] > 0


def test_the_reference_is_neither_trained_nor_saved():
    task = make(kl_weight=0.1)
    before = {name: value.clone() for name, value in task._reference[0].state_dict().items()}
    fit(task, max_steps=2)
    after = task._reference[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(before["lm_head.weight"], task.model.lm_head.weight)
    assert len(task.state_dict()) == len(before)


@RESUMED
def test_a_run_is_resumed_in_the_middle_of_a_rollout(tmp_path):
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make(updates_per_rollout=3, kl_weight=0.1)
    fit(whole, ExactResume(), kept, enable_checkpointing=True, max_steps=5)
    for step in (2, 3, 4):
        resumed = make(updates_per_rollout=3, kl_weight=0.1)
        path = tmp_path / f"step={step}.ckpt"
        assert "circuitkeep.GRPO" in torch.load(path, weights_only=True)
        fit(resumed, ExactResume(), ckpt_path=path, seed=99, max_steps=5)
        assert torch.equal(weights(resumed), weights(whole)), step


def test_accumulation_of_reused_rollouts_is_refused():
    with pytest.raises(ValueError, match="do not go together: a rollout is that of one batch"):
        fit(make(updates_per_rollout=2), accumulate_grad_batches=2)
    fit(make(), accumulate_grad_batches=2, max_steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "GRPO compares completions of one prompt"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"clip": 0.0}, "clip must be between 0 and 1"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1"),
        ({"loss": "grp"}, "unknown loss 'grp'; did you mean 'grpo'"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# Guarded


class Still(LightningModule):
    """No loss of its own: the gradient is the penalty's."""

    def __init__(self, task):
        super().__init__()
        self.model = task.model

    def training_step(self, batch, batch_idx):
        return 0 * self.model(input_ids=batch["input_ids"]).logits.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def guard(folder, **options):
    return CircuitPreservation(CIRCUIT, pool_rows=4, reference=folder / "base", **options)


def test_a_guard_of_weight_0_changes_no_bit(tmp_path):
    one, other = make(), make()
    fit(one)
    fit(other, guard(tmp_path, weight=0.0))
    assert torch.equal(weights(one), weights(other))


def test_a_guard_adds_its_gradient_and_leaves_the_samples_alone(tmp_path):
    options = {"max_steps": 1, "gradient_clip_val": None}
    fit(Still(make(dtype=torch.float64)), guard(tmp_path), **options)
    seen = []
    for task, guarded in (
        (make(1, dtype=torch.float64), False),
        (make(1, dtype=torch.float64), True),
        (Still(make(1, dtype=torch.float64)), True),
    ):
        gradients, callbacks = Gradients(), []
        if guarded:
            callbacks.append(guard(tmp_path))
            callbacks[0].load_state_dict({"reference": str(tmp_path / "base")})
        fit(task, *callbacks, gradients, **options)
        seen.append(gradients.seen[0])
    for free, held, penalty in zip(*seen, strict=True):
        assert_close(held - free, penalty, rtol=1e-9, atol=1e-12)
    assert any(penalty.abs().max() > 1e-4 for penalty in seen[2])
