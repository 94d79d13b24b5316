import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks.key_value_prompts import KeyValuePrompts
from circuitkeep.tasks.reinforce import Reinforce
from circuitkeep.tasks.rollouts import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def even(completions):
    return (completions.tokens % 2 == 0).float().sum(1)


def make(reward=even, **options):
    options = {"group_size": 3, "sampling": Sampling(2), **options}
    return Reinforce(build_embedded(0), {"reward": reward}, **options)


def batch():
    return next(iter(KeyValuePrompts(8, 2, batch_size=4, pairs=3).train_dataloader()))


@pytest.mark.parametrize("baseline", ["group", "batch", "none"])
def test_the_gradient_is_the_policy_gradient(baseline):
    task = make(baseline=baseline)
    torch.manual_seed(0)
    rollout = task.rollout(batch())
    torch.manual_seed(0)
    task.training_step(batch(), 0).backward()
    found = [p.grad.clone() for p in task.parameters()]
    task.zero_grad()
    rewards, total = rollout.rewards.tolist(), 0.0
    log_probs = task.log_probs(rollout)
    for row, reward in enumerate(rewards):
        others = {"group": rewards[row // 3 * 3 :][:3], "batch": rewards, "none": []}[baseline]
        compared = (sum(others) - reward) / (len(others) - 1) if others else 0.0
        # Three pairs are 9 tokens; the two behind them were sampled.
        total = total - (reward - compared) * log_probs[row, 8:].sum() / len(rewards)
    total.backward()
    for one, parameter in zip(found, task.parameters(), strict=True):
        assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("reward", "baseline"), [(0.0, "none"), (0.0, "group"), (0.1, "group"), (0.1, "batch")]
)
def test_without_advantage_there_is_no_gradient(reward, baseline):
    task = make(lambda c: [reward] * len(c.tokens), baseline=baseline)
    loss = task.training_step(batch(), 0)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in task.parameters())


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="unknown baseline 'grupo'; did you mean 'group'"):
        make(baseline="grupo")
    with pytest.raises(ValueError, match="group_size=1 leaves nothing to compare with"):
        make(group_size=1)
    assert make(group_size=1, baseline="batch").training_step(batch(), 0).isfinite()
