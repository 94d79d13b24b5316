import pytest
import torch

from circuitkeep.penalties import Activations, HeadScoreFloor, Labels


def naive_score(pattern, labels, row, head):
    per_query = [
        sum(
            pattern[row, head, query, key].item()
            for key in range(pattern.shape[3])
            if labels.target[row, head, query, key]
        )
        for query in range(pattern.shape[2])
        if labels.target_mask[row, head, query]
    ]
    return sum(per_query) / len(per_query) if per_query else None


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_equals_naive_loop(parameters, labels, margin):
    now, reference = (parameters(s).activations() for s in (1, 0))
    n_rows, n_heads = now.pattern.shape[:2]
    total = 0.0
    for row in range(n_rows):
        for head in range(n_heads):
            score = naive_score(now.pattern, labels, row, head)
            if score is not None:
                before = naive_score(reference.pattern, labels, row, head)
                total += max(0.0, before - margin - score) ** 2
    value = HeadScoreFloor(margin)(now, reference, labels)
    assert value.item() == pytest.approx(total / (n_rows * n_heads), rel=1e-5)


def one_head(attention):
    """One row, one head, one query with the target key 0."""
    target = torch.tensor([[[[True, False]]]])
    labels = Labels(
        torch.ones(1, 1, dtype=torch.bool), target.any(-1), target, torch.zeros(0, dtype=torch.long)
    )
    return Activations(torch.tensor([[[[attention, 1 - attention]]]])), labels


def test_by_hand():
    reference, labels = one_head(0.9)
    now, _ = one_head(0.35)
    assert HeadScoreFloor(0.05)(now, reference, labels).item() == pytest.approx(0.25)


@pytest.mark.parametrize("attention", [0.87, 0.9, 1.0])
def test_blind_above_the_floor(attention):
    reference, labels = one_head(0.9)
    now, _ = one_head(attention)
    assert HeadScoreFloor(0.05)(now, reference, labels) == 0


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_a_margin_that_is_no_drop_in_attention_is_refused(margin):
    with pytest.raises(ValueError, match=r"choose it in \[0, 1\)"):
        HeadScoreFloor(margin)
