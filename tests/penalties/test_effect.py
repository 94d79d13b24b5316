import pytest
import torch

from circuitkeep.penalties import Activations, EffectDrift, Labels

LABELS = Labels(
    torch.ones(3, 1, dtype=torch.bool),
    torch.ones(3, 1, 1, dtype=torch.bool),
    torch.ones(3, 1, 1, 1, dtype=torch.bool),
    torch.tensor([0, 0, 2]),
)
KEPT = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)


def value(effect, kept=KEPT):
    return EffectDrift()(Activations(effect=effect), Activations(effect=kept), LABELS)


def test_by_hand():
    # Row 0: (4 + 0) / 2; row 1 has no answer; row 2: 9.
    assert value(torch.tensor([3.0, 2.0, 2.0]).double()).item() == pytest.approx((2 + 9) / 3)


def test_equals_a_naive_loop():
    now = torch.tensor([0.3, -1.7, 0.4], dtype=torch.float64)
    per_row = {}
    for row, one, other in zip(LABELS.answer_row.tolist(), now, KEPT, strict=True):
        per_row.setdefault(row, []).append(float(one - other) ** 2)
    total = sum(sum(values) / len(values) for values in per_row.values())
    assert value(now).item() == pytest.approx(total / 3)


def test_zero_with_zero_gradient_at_the_reference():
    now = KEPT.clone().requires_grad_()
    found = value(now)
    found.backward()
    assert found == 0
    assert not now.grad.any()


def test_gradient_and_growth():
    now = torch.tensor([0.3, -1.7, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(value, now.clone().requires_grad_())
    drifts = [value(torch.lerp(KEPT, now, part)).item() for part in (0.0, 0.1, 0.4, 1.0)]
    assert drifts == sorted(drifts)


def test_what_is_missing_is_refused():
    with pytest.raises(ValueError, match="current activations hold no 'effect'"):
        value(None)
    with pytest.raises(ValueError, match="same probe rows"):
        value(KEPT[:1])
