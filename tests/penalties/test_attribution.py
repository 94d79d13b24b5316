import pytest
import torch

from circuitkeep.penalties import Activations, AttributionDrift, Labels
from circuitkeep.penalties.attribution import attributed

ANSWERS, HEADS, D = 4, 3, 5
LABELS = Labels(
    torch.ones(4, 1, dtype=torch.bool),
    torch.ones(4, HEADS, 1, dtype=torch.bool),
    torch.ones(4, HEADS, 1, 1, dtype=torch.bool),
    torch.tensor([0, 0, 1, 3]),
)


def drawn(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def reference(written, direction):
    said = torch.einsum("ahd,ad->ah", written, direction)
    return Activations(direction=direction, attribution=said)


KEPT, NOW, DIRECTION = (
    drawn(0, ANSWERS, HEADS, D),
    drawn(1, ANSWERS, HEADS, D),
    drawn(2, ANSWERS, D),
)


def value(written, before=None):
    before = reference(KEPT, DIRECTION) if before is None else before
    return AttributionDrift()(Activations(written=written), before, LABELS)


def test_equals_a_naive_loop():
    total = 0.0
    for row in range(4):
        answers = [a for a, at in enumerate(LABELS.answer_row.tolist()) if at == row]
        for a in answers:
            for head in range(HEADS):
                change = sum(
                    DIRECTION[a, d].item() * (NOW[a, head, d] - KEPT[a, head, d]).item()
                    for d in range(D)
                )
                total += change**2 / HEADS / len(answers)
    assert value(NOW).item() == pytest.approx(total / 4)


def test_by_hand():
    # Two heads wrote 1 and 2 logits for the answer, and now write 3 and 2: (4 + 0) / 2.
    direction = torch.tensor([[1.0, 0.0]])
    labels = Labels(
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 2, 1, dtype=torch.bool),
        torch.ones(1, 2, 1, 1, dtype=torch.bool),
        torch.tensor([0]),
    )
    before = Activations(direction=direction, attribution=torch.tensor([[1.0, 2.0]]))
    now = Activations(written=torch.tensor([[[3.0, 9.0], [2.0, -7.0]]]))
    assert AttributionDrift()(now, before, labels).item() == pytest.approx(2)


def test_zero_with_zero_gradient_at_the_reference():
    written = KEPT.float().requires_grad_()
    # As the reference is made: by the same function of the same numbers.
    before = Activations(
        direction=DIRECTION.float(), attribution=attributed(KEPT.float(), DIRECTION.float())
    )
    found = value(written, before)
    found.backward()
    assert found == 0
    assert not written.grad.any()


def test_gradient():
    assert torch.autograd.gradcheck(value, NOW.clone().requires_grad_())


def test_it_grows_with_the_damage_and_is_blind_across_the_direction():
    drifts = [value(torch.lerp(KEPT, NOW, part)).item() for part in (0.0, 0.1, 0.4, 1.0)]
    assert drifts == sorted(drifts)
    assert drifts[1] > 1e-4
    unit = DIRECTION / DIRECTION.norm(dim=1, keepdim=True)
    across = NOW - (NOW * unit[:, None]).sum(-1, keepdim=True) * unit[:, None]
    assert value(KEPT + across).item() == pytest.approx(0, abs=1e-12)


def test_half_precision_is_compared_in_fp32():
    before = reference(KEPT, DIRECTION)
    before = Activations(direction=before.direction.float(), attribution=before.attribution.float())
    assert value(NOW.bfloat16(), before).dtype == torch.float32


def test_what_is_missing_is_refused():
    with pytest.raises(ValueError, match="current activations hold no 'attribution'"):
        value(None)
    with pytest.raises(ValueError, match="reference activations hold no 'attribution'"):
        value(NOW, Activations())
    with pytest.raises(ValueError, match="1 answers now and 4 at the reference"):
        value(NOW[:1])
