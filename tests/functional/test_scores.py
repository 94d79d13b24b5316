import pytest
import torch
from jaxtyping import TypeCheckError
from torch.testing import assert_close

from circuitkeep.functional import head_score, head_score_per_row, target_attention

ROWS, HEADS, POSITIONS = 3, 2, 5


@pytest.fixture
def pattern():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, HEADS, POSITIONS, POSITIONS, generator=generator).softmax(-1)


@pytest.fixture
def target():
    """Some queries with one key, some with two, most with none; the last row has none at all."""
    target = torch.zeros(ROWS, POSITIONS, POSITIONS, dtype=torch.bool)
    target[0, 2, 1] = target[0, 4, 3] = target[0, 4, 0] = target[1, 3, 3] = True
    return target


def naive_scores(pattern, target, rows):
    scores = []
    for head in range(HEADS):
        per_query = [
            sum(pattern[row, head, query, key].item() for key in range(POSITIONS) if keys[key])
            for row in rows
            for query, keys in enumerate(target[row].tolist())
            if any(keys)
        ]
        scores.append(sum(per_query) / len(per_query) if per_query else float("nan"))
    return torch.tensor(scores)


def test_score_equals_naive_loop(pattern, target):
    assert_close(head_score(pattern, target), naive_scores(pattern, target, range(ROWS)))


def test_score_per_row_equals_naive_loop_and_is_nan_without_targets(pattern, target):
    scores = head_score_per_row(pattern, target)
    for row in range(ROWS):
        assert_close(scores[row], naive_scores(pattern, target, [row]), equal_nan=True)
    assert scores[-1].isnan().all()


def test_score_by_hand():
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])[None, None]
    target = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1]], dtype=torch.bool)[None]
    # Two queries count: .5 on its target, and .25 + .5.
    assert head_score(pattern, target).tolist() == [0.625]
    assert head_score_per_row(pattern, target).tolist() == [[0.625]]
    assert target_attention(pattern, target[:, None]).tolist() == [[[0.0, 0.5, 0.75]]]


def test_score_rises_with_attention_to_the_target(target):
    off_target = torch.full((ROWS, 1, POSITIONS, POSITIONS), 1 / POSITIONS)
    on_target = target[:, None] / target[:, None].sum(-1, keepdim=True).clamp(min=1)
    scores = [
        head_score(torch.lerp(off_target, on_target, weight), target).item()
        for weight in (0.0, 0.3, 0.6, 1.0)
    ]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(1)


def test_no_target_anywhere_is_an_error_that_says_so(pattern, target):
    with pytest.raises(ValueError, match="no query of the 3 prompts has a target key"):
        head_score(pattern, torch.zeros_like(target))


def test_gradients(pattern, target):
    pattern = pattern.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: head_score(p, target), pattern)
    assert torch.autograd.gradcheck(lambda p: head_score_per_row(p, target)[:2], pattern)
    assert torch.autograd.gradcheck(lambda p: target_attention(p, target[:, None]), pattern)


def test_per_row_gradient_is_finite_though_a_row_is_nan(pattern, target):
    pattern.requires_grad_()
    head_score_per_row(pattern, target).nansum().backward()
    assert pattern.grad is not None
    assert pattern.grad.isfinite().all()


def test_bf16_is_summed_in_fp32():
    # 256 + 1 is 256 in bf16, so a sum over 1024 keys would stop growing early.
    pattern = torch.full((1, 1, 1, 1024), 1 / 1024, dtype=torch.bfloat16)
    target = torch.ones(1, 1, 1024, dtype=torch.bool)
    score = head_score(pattern, target)
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(1, abs=1e-6)


def test_autocast_does_not_lower_the_precision(pattern, target):
    exact = head_score(pattern, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(head_score(pattern, target), exact, rtol=0, atol=0)


def test_shapes_are_checked_while_testing(pattern, target):
    with pytest.raises(TypeCheckError):
        head_score(pattern, target[:, :2])
