"""Run as a script, this file trains in two processes: see `main`."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.testing import assert_close

from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks.grpo import GRPO
from circuitkeep.tasks.key_value_prompts import KeyValuePreferences, KeyValuePrompts
from circuitkeep.tasks.loading import Rows, RowsModule
from circuitkeep.tasks.preference import DPO
from circuitkeep.tasks.reinforce import Reinforce
from circuitkeep.tasks.rollouts import Rollout, Sampling, evaluating

WITHOUT_TRAINER = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
EOS, PAD = 33, 34


class Scripted(nn.Module):
    """Says what it is told to, whatever it is asked; its log-probabilities are a model's."""

    def __init__(self, model, completions):
        super().__init__()
        self.inner, self.completions = model, torch.tensor(completions)
        self.config, self.generation_config = model.config, model.generation_config

    def forward(self, **inputs):
        return self.inner(**inputs)

    def generate(self, ids, **options):
        self.options = options
        return torch.cat([ids, self.completions.expand(len(ids), -1)], 1)


def batch_of(*prompts, side="right", **columns):
    width = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        padding = [0] * (width - len(prompt))
        real = [1] * len(prompt)
        rows.append(padding + prompt if side == "left" else prompt + padding)
        masks.append(padding + real if side == "left" else real + padding)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks), **columns}


def length(completions):
    return completions.mask.sum(1)


def trainer_of(**options):
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_steps": 1,
            "limit_val_batches": 0,
            **options,
        }
    )


# Sampling


@WITHOUT_TRAINER
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_changes_nothing(tiny_model, kind, side):
    """Neither what is sampled nor its log-probabilities; GPT-2 has absolute positions."""
    model = tiny_model(kind)
    prompts = [[32, 1, 2, 3, 4], [32, 7], [32, 9, 8]]
    task = GRPO(model, {"length": length}, sampling=Sampling(6, temperature=0.7))
    rollout = task._sample(batch_of(*prompts, side=side), 1, greedy=True)[0]
    model.eval()  # GPT-2 has dropout
    found = task.log_probs(rollout)
    for row, prompt in enumerate(prompts):
        whole = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
        )[0]
        real = rollout.attention_mask[row].bool()
        assert rollout.tokens[row][real].tolist() == whole.tolist()
        assert rollout.sampled[row].nonzero()[:, 0].tolist() == [*range(len(prompt), len(whole))]
        alone = (model(whole[None]).logits[0, :-1] / 0.7).log_softmax(-1)
        expected = alone.gather(1, whole[1:, None])[:, 0]
        assert_close(found[row, : len(whole) - 1], expected)


@WITHOUT_TRAINER
def test_an_empty_completion_is_its_end_token(tiny_model, word_tokenizer):
    """The decision to stop at once has a log-probability, and so it can be learned or unlearned."""
    said = []
    model = Scripted(tiny_model("llama"), [EOS, PAD, PAD])
    rewards = {"text": lambda c: [said.append(text) or 0.0 for text in c.texts]}
    task = Reinforce(model, rewards, baseline="none", tokenizer=word_tokenizer)
    rollout = task.rollout(batch_of([32, 1], [32, 2, 3]))
    assert set(said) == {""}
    assert rollout.sampled.sum(1).tolist() == [1] * 16
    assert (rollout.tokens[rollout.sampled] == EOS).all()
    assert model.options["pad_token_id"] == PAD
    loss = task.training_step(batch_of([32, 1], [32, 2, 3]), 0)
    loss.backward()
    assert not any(p.grad.any() for p in task.parameters())


@WITHOUT_TRAINER
def test_rewards_see_each_completion_with_its_columns(tiny_model):
    seen = []
    task = GRPO(
        tiny_model("llama"), {"see": lambda c: [seen.append(c), length(c)][1]}, group_size=3
    )
    task.rollout(batch_of([32, 1], [32, 2, 3], answer=torch.tensor([[4], [5]])))
    assert seen[0].columns["answer"].tolist() == [[4]] * 3 + [[5]] * 3
    assert [row.tolist() for row in seen[0].prompts] == [[32, 1]] * 3 + [[32, 2, 3]] * 3
    assert seen[0].tokens.shape == (6, seen[0].mask.shape[1])


@WITHOUT_TRAINER
def test_sampling_draws_from_the_global_state_and_with_dropout_off(tiny_model):
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
    task = GRPO(model, {"length": length}, group_size=4)
    flags = [module.training for module in task.modules()]
    batch = batch_of([32, 1], [32, 2, 3])
    rows = []
    for restart in (True, False, True):
        if restart:
            torch.manual_seed(3)
        rows.append(task.rollout(batch).tokens)
    assert torch.equal(rows[0], rows[2])
    assert rows[0].shape != rows[1].shape or not torch.equal(rows[0], rows[1])
    before = torch.get_rng_state()
    greedy = [task._sample(batch, 1, greedy=True)[0].tokens for _ in range(2)]
    assert torch.equal(*greedy)
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in task.modules()] == flags
    with evaluating(model):
        assert not any(module.training for module in model.modules())


# What does not fit


def data_of(*prompts):
    data = RowsModule(batch_size=2, seed=0, num_workers=0)
    data.train_rows, data.val_rows = Rows(batch_of(*prompts)), None
    return data


def test_a_prompt_beyond_the_context_is_refused_before_training(tiny_model):
    task = GRPO(tiny_model("llama"), {"length": length}, sampling=Sampling(20))
    message = (
        r"row 1 of train_rows \(5 tokens\) and max_new_tokens=20 exceed the model's context of "
        r"24; leave such prompts out \(1 of 2 rows"
    )
    with pytest.raises(ValueError, match=message):
        trainer_of().fit(task, datamodule=data_of([32, 1, 2, 3], [32, 1, 2, 3, 4]))
    trainer_of().fit(task, datamodule=data_of([32, 1, 2, 3], [32, 1, 2]))
    with pytest.raises(ValueError, match="row 0 of the batch"):
        task._sample(batch_of([32, 1, 2, 3, 4]), 1)


def test_an_empty_prompt_is_refused(tiny_model):
    task = GRPO(tiny_model("llama"), {"length": length})
    with pytest.raises(ValueError, match=r"row 1 of train_rows \(0 tokens\) is empty"):
        trainer_of().fit(task, datamodule=data_of([32, 1, 2, 3], []))


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_models_are_refused(tiny_model, strategy):
    task = GRPO(tiny_model("llama"), {"length": length})
    task._trainer = SimpleNamespace(strategy=object.__new__(strategy))
    with pytest.raises(
        ValueError, match="sampling from a sharded model has not been shown to be right; use DDP"
    ):
        task.setup("fit")


def test_models_that_cannot_generate_are_refused():
    with pytest.raises(ValueError, match="Linear has no `generate`"):
        GRPO(nn.Linear(2, 2), {"length": length})


# Processes


class Recorded(GRPO):
    """Keeps what was sampled, and what a random number would have been before."""

    def rollout(self, batch):
        self.drawn = torch.get_rng_state()
        self.kept = super().rollout(batch)
        return self.kept

    def on_before_optimizer_step(self, optimizer):
        self.gradient = [p.grad.clone() for p in self.parameters()]


def grpo_task():
    torch.manual_seed(0)
    model = build_embedded(0).double()
    # By chance alone hardly any completion is right.
    even = {"even": lambda c: (c.tokens % 2 == 0).float().sum(1)}
    return Recorded(model, even, group_size=4, sampling=Sampling(2), lr=0.01)


def preference_data():
    return KeyValuePreferences(train_rows=5, val_rows=3, batch_size=2, pairs=2)


def main():
    """Train GRPO for a step, and let DPO ask its reference; every process writes what it saw."""
    folder = Path(sys.argv[1])
    options = {"devices": 2, "strategy": "ddp"}
    task = grpo_task()
    trainer = trainer_of(**options)
    trainer.fit(task, datamodule=KeyValuePrompts(train_rows=8, val_rows=2, batch_size=4, pairs=3))
    reward = trainer.callback_metrics["train/reward"]
    dpo, data = DPO(build_embedded(0)), preference_data()
    trainer_of(**options).fit(dpo, datamodule=data)
    seen = {
        "rollout": vars(task.kept),
        "drawn": task.drawn,
        "gradient": task.gradient,
        "reward": reward,
        "reference": data.train_rows.columns["reference"],
    }
    torch.save(seen, folder / f"{trainer.global_rank}.pt")


def test_two_processes_sample_their_own_and_share_the_gradient(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    prompts = [one["rollout"]["tokens"][:, :9] for one in seen]
    assert not {tuple(p) for p in prompts[0].tolist()} & {tuple(p) for p in prompts[1].tolist()}
    assert not torch.equal(seen[0]["drawn"], seen[1]["drawn"])

    task = grpo_task()
    gradients = []
    for one in seen:
        task.zero_grad()
        kept = Rollout(**{**one["rollout"], "old_log_probs": None})
        task.rollout = lambda batch, kept=kept: kept
        task._rollout = None
        task.log = lambda *args, **kwargs: None
        task.training_step({}, 0).backward()
        gradients.append([p.grad.clone() for p in task.parameters()])
    for name in range(len(gradients[0])):
        mean = (gradients[0][name] + gradients[1][name]) / 2
        assert mean.any()
        for one in seen:
            assert_close(one["gradient"][name], mean, rtol=1e-9, atol=1e-12)
    rewards = torch.cat([one["rollout"]["rewards"] for one in seen])
    assert seen[0]["reward"].item() == pytest.approx(rewards.mean().item())

    data = preference_data()
    dpo = DPO(build_embedded(0))
    trainer_of(max_steps=0).fit(dpo, datamodule=data)
    for one in seen:
        assert_close(one["reference"], data.train_rows.columns["reference"])


if __name__ == "__main__":
    main()
