import math
import statistics

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.policy import (
    clipped_surrogate,
    dpo_loss,
    equal_groups,
    group_advantages,
    leave_one_out_advantages,
    mean_over_completions,
    preference_margin,
    reinforce_loss,
    sampled_kl,
    token_log_probs,
)

MASK = torch.tensor([[True, True, False], [True, True, True]])


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def leaf(*shape, seed=0):
    return normal(*shape, seed=seed).requires_grad_()


# Log-probabilities


def test_token_log_probs_by_loop():
    logits, tokens = normal(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    for row in range(2):
        for place in range(3):
            scores = logits[row, place].tolist()
            total = math.log(sum(math.exp(score) for score in scores))
            found = token_log_probs(logits, tokens)[row, place].item()
            assert found == pytest.approx(scores[tokens[row, place]] - total)
    assert token_log_probs(torch.zeros(1, 1, 4), torch.tensor([[2]])).item() == pytest.approx(
        -math.log(4)
    )
    assert token_log_probs(logits.bfloat16(), tokens).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, tokens), leaf(2, 3, 5))


# Advantages


@pytest.mark.parametrize("scale", [True, False])
def test_group_advantages_by_loop(scale):
    rewards = normal(12)
    expected = []
    for group in rewards.view(3, 4).tolist():
        mean, spread = statistics.mean(group), statistics.stdev(group)
        expected += [(r - mean) / (spread + 1e-4 if scale else 1) for r in group]
    found = group_advantages(rewards, 4, scale)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_group_advantages_by_hand():
    # Mean 1/2; squared distances 4 * 1/4 over n - 1 = 3.
    found = group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), 4)
    assert_close(found, torch.tensor([1.0, 1.0, -1.0, -1.0]) * 0.5 / (math.sqrt(1 / 3) + 1e-4))


def test_leave_one_out_by_loop_and_by_hand():
    rewards = normal(12)
    groups = rewards.view(3, 4).tolist()
    expected = [
        reward - sum(group[:i] + group[i + 1 :]) / 3
        for group in groups
        for i, reward in enumerate(group)
    ]
    found = leave_one_out_advantages(rewards, 4)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    by_hand = leave_one_out_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    assert_close(by_hand, torch.tensor([1.0, -0.5, -0.5]))


@pytest.mark.parametrize("advantages", [group_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e6 / 3])
def test_equal_rewards_have_exactly_no_advantage(advantages, reward):
    """0.1 in float32: the mean of seven of them is another number."""
    rewards = torch.tensor([reward] * 7 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = advantages(rewards, 7)
    assert torch.equal(found[:7], torch.zeros(7))
    assert (found[7:-4] < 0).all()
    assert (found[-3:] > 0).all()
    assert equal_groups(rewards, 7).tolist() == [True, False]


@pytest.mark.parametrize(("rows", "size"), [(4, 1), (5, 2), (0, 2)])
def test_what_is_no_group(rows, size):
    for function in (group_advantages, leave_one_out_advantages, equal_groups):
        with pytest.raises(ValueError, match=f"{rows} rewards are not whole groups of {size}"):
            function(torch.zeros(rows), size)


# The clipped surrogate


def test_clipped_surrogate_by_loop():
    now, old, advantages = normal(2, 3), normal(2, 3, seed=1), torch.tensor([1.5, -0.5]).double()
    loss, clipped = clipped_surrogate(now, old, advantages, 0.2)
    for row in range(2):
        for place in range(3):
            ratio = math.exp(now[row, place] - old[row, place])
            advantage = advantages[row].item()
            held = min(max(ratio, 0.8), 1.2) * advantage
            assert loss[row, place].item() == pytest.approx(-min(ratio * advantage, held))
            assert clipped[row, place].item() == (held < ratio * advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # far enough in the good direction
        (0.5, 2.0, -1.0, -1.0),  # too far in the bad one: pulled back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected, gradient):
    now = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, clipped = clipped_surrogate(
        now, torch.zeros(1, 1).double(), torch.tensor([advantage]).double(), 0.2
    )
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected)
    assert now.grad.item() == pytest.approx(gradient)
    assert clipped.item() == (gradient == 0 and advantage != 0)


def test_clipped_surrogate_gradcheck():
    old, advantages = normal(2, 3, seed=1), normal(2, seed=2)
    assert torch.autograd.gradcheck(
        lambda now: clipped_surrogate(now, old, advantages, 0.2)[0], leaf(2, 3)
    )


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("distance", [200.0, -200.0])
def test_ratios_beyond_every_range_stay_finite(advantage, distance):
    now = torch.tensor([[distance]], requires_grad=True)
    loss, _ = clipped_surrogate(now, torch.zeros(1, 1), torch.tensor([advantage]), 0.2)
    total = loss.sum() + sampled_kl(now, torch.zeros(1, 1)).sum()
    total.backward()
    assert total.isfinite()
    assert now.grad.isfinite().all()


# KL


def test_sampled_kl():
    now, reference = normal(2, 3), normal(2, 3, seed=1)
    for one, other, found in zip(
        now.flatten(), reference.flatten(), sampled_kl(now, reference).flatten(), strict=True
    ):
        delta = (other - one).item()
        assert found.item() == pytest.approx(math.exp(delta) - delta - 1)
        assert found.item() >= 0
    by_hand = sampled_kl(torch.zeros(1, 1), torch.full((1, 1), math.log(2)))
    assert by_hand.item() == pytest.approx(1 - math.log(2))
    same = now.clone().requires_grad_()
    sampled_kl(same, now).sum().backward()
    assert torch.equal(sampled_kl(now, now), torch.zeros_like(now))
    assert not same.grad.any()
    assert torch.autograd.gradcheck(lambda x: sampled_kl(x, reference), leaf(2, 3))


def test_sampled_kl_is_unbiased():
    now, reference = normal(6).log_softmax(-1), normal(6, seed=1).log_softmax(-1)
    estimate = (now.exp() * sampled_kl(now[None], reference[None])[0]).sum()
    assert_close(estimate, (now.exp() * (now - reference)).sum())


# Means


def test_mean_over_completions():
    values = torch.tensor([[1.0, 3.0, torch.nan], [2.0, 4.0, 9.0]])
    assert mean_over_completions(values, MASK).item() == (2 + 5) / 2
    assert mean_over_completions(values, MASK, 10).item() == pytest.approx((0.4 + 1.5) / 2)
    assert mean_over_completions(values, torch.zeros_like(MASK)).item() == 0
    parts = [mean_over_completions(values[i : i + 1], MASK[i : i + 1]).item() for i in range(2)]
    assert sum(parts) / 2 == mean_over_completions(values, MASK).item()
    assert torch.autograd.gradcheck(lambda x: mean_over_completions(x, MASK), leaf(2, 3))


def test_reinforce_loss():
    log_probs, advantages = normal(2, 3), torch.tensor([0.5, -2.0]).double()
    total = sum(
        advantages[i].item() * log_probs[i, t].item()
        for i in range(2)
        for t in range(3)
        if MASK[i, t]
    )
    assert reinforce_loss(log_probs, MASK, advantages).item() == pytest.approx(-total / 2)
    half = torch.full((1, 2), -math.log(2))
    by_hand = reinforce_loss(half, torch.ones(1, 2, dtype=torch.bool), torch.tensor([3.0]))
    assert by_hand.item() == pytest.approx(6 * math.log(2))
    assert torch.autograd.gradcheck(lambda x: reinforce_loss(x, MASK, advantages), leaf(2, 3))
    still = leaf(2, 3)
    reinforce_loss(still, MASK, torch.zeros(2).double()).backward()
    assert not still.grad.any()


# Preferences


def test_dpo_by_loop_and_by_hand():
    chosen, rejected, before_chosen, before_rejected = (normal(4, seed=i) for i in range(4))
    margin = preference_margin(chosen, rejected, before_chosen, before_rejected)
    expected = []
    for i in range(4):
        m = (chosen[i] - before_chosen[i]) - (rejected[i] - before_rejected[i])
        assert margin[i].item() == pytest.approx(m.item())
        expected.append(-math.log(1 / (1 + math.exp(-0.3 * m))))
    assert dpo_loss(margin, 0.3).item() == pytest.approx(statistics.mean(expected))
    assert dpo_loss(torch.zeros(3), 0.3).item() == pytest.approx(math.log(2))
    assert dpo_loss(torch.tensor([math.log(3)]), 1.0).item() == pytest.approx(math.log(4 / 3))
    inputs = [leaf(4, seed=i) for i in range(4)]
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(preference_margin(*x), 0.3), inputs)


def test_dpo_is_finite_when_saturated_and_falls_with_the_margin():
    margins = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6], requires_grad=True)
    losses = torch.stack([dpo_loss(margin[None], 0.1) for margin in margins])
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (losses.diff() < 0).all()
    assert margins.grad.isfinite().all()
