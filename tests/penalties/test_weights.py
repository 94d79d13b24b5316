import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.penalties import Activations, HeadWeightDrift, Labels, Sum

HEADS, D, RANK, OFFSETS = 3, 7, 2, 4
LABELS = Labels(
    torch.ones(1, 1, dtype=torch.bool),
    torch.ones(1, HEADS, 1, dtype=torch.bool),
    torch.ones(1, HEADS, 1, 1, dtype=torch.bool),
    torch.zeros(0, dtype=torch.long),
)
SHAPES = {"W_Q": (D, RANK), "W_K": (D, RANK), "W_V": (D, RANK), "W_O": (RANK, D - 1)}


def weights(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(HEADS, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }


def turns():
    """Rotations by an angle per offset and head."""
    angle = torch.arange(OFFSETS)[None] * torch.tensor([1.0, 0.3, 0.0])[:, None]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def value(now, kept, circuits="both", turned=None):
    reference = Activations(**kept, turns=turned)
    return HeadWeightDrift(circuits)(Activations(**now), reference, LABELS)


def naive(now, kept, circuits, turned):
    """Whole products, entry by entry."""
    totals = []
    for head in range(HEADS):
        drift = []
        if circuits != "ov":
            offsets = [torch.eye(RANK)] if turned is None else turned[head].unbind()
            pairs = [
                tuple(w["W_Q"][head] @ turn.double() @ w["W_K"][head].T for w in (now, kept))
                for turn in offsets
            ]
            drift.append(pairs)
        if circuits != "qk":
            drift.append([tuple(w["W_V"][head] @ w["W_O"][head] for w in (now, kept))])
        for pairs in drift:
            over, under = 0.0, 0.0
            for a, b in pairs:
                over += sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True))
                under += sum(y**2 for y in b.flatten())
            totals.append(float(over / under))
    return sum(totals) / len(totals)


@pytest.mark.parametrize("circuits", ["both", "qk", "ov"])
@pytest.mark.parametrize("turned", [None, turns()], ids=["plain", "rotary"])
def test_equals_a_naive_loop(circuits, turned):
    now, kept = weights(1), weights(0)
    found = value(now, kept, circuits, turned)
    assert found.item() == pytest.approx(naive(now, kept, circuits, turned), rel=1e-6)


def test_by_hand():
    # Rank 1: QK doubles, so its distance is its size; OV turns by a right angle: 1 + 1.
    one = torch.tensor([[[1.0], [0.0]]])
    other = torch.tensor([[[0.0], [1.0]]])
    kept = {"W_Q": one, "W_K": one, "W_V": one, "W_O": one.mT}
    now = {"W_Q": 2 * one, "W_K": one, "W_V": one, "W_O": other.mT}
    assert value(now, kept, "qk").item() == pytest.approx(1)
    assert value(now, kept, "ov").item() == pytest.approx(2)
    assert value(now, kept).item() == pytest.approx(1.5)


@pytest.mark.parametrize("turned", [None, turns()], ids=["plain", "rotary"])
def test_zero_with_zero_gradient_at_the_reference(turned):
    now = {name: w.requires_grad_() for name, w in weights(0, torch.float32).items()}
    found = value(now, weights(0, torch.float32), turned=turned)
    found.backward()
    assert found == 0
    assert not any(w.grad.any() for w in now.values())


@pytest.mark.parametrize("turned", [None, turns()], ids=["plain", "rotary"])
def test_gradient(turned):
    kept = weights(0)
    now = tuple(w.requires_grad_() for w in weights(1).values())

    def of(*tensors):
        return value(dict(zip(SHAPES, tensors, strict=True)), kept, turned=turned)

    assert torch.autograd.gradcheck(of, now)


def test_a_change_of_basis_is_no_drift():
    kept = weights(0)
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(HEADS, RANK, RANK, generator=generator, dtype=torch.float64)
    inverse = basis.inverse()
    same = {
        "W_Q": kept["W_Q"] @ basis,
        "W_K": kept["W_K"] @ inverse.mT,
        "W_V": kept["W_V"] @ basis,
        "W_O": inverse @ kept["W_O"],
    }
    assert value(same, kept).item() == pytest.approx(0, abs=1e-12)
    # Elsewhere too: the value, not only its zero, depends on the products alone.
    other = {name: w + 0.3 for name, w in kept.items()}
    assert_close(value(other, kept), value(other, same))


def test_under_rotary_only_what_commutes_with_the_turning_is_no_drift():
    kept = weights(0)
    turned = turns()[:1].expand(HEADS, -1, -1, -1)
    turn = turned[0, 1].double()
    rotated = {**kept, "W_Q": kept["W_Q"] @ turn, "W_K": kept["W_K"] @ turn}
    assert value(rotated, kept, "qk", turned).item() == pytest.approx(0, abs=1e-12)
    mixed = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    sheared = {**kept, "W_Q": kept["W_Q"] @ mixed, "W_K": kept["W_K"] @ mixed.inverse().T}
    assert value(sheared, kept, "qk").item() == pytest.approx(0, abs=1e-12)
    assert value(sheared, kept, "qk", turned).item() > 0.01


def test_it_grows_with_the_damage():
    kept, other = weights(0), weights(1)
    drifts = [
        value({name: torch.lerp(w, other[name], part) for name, w in kept.items()}, kept).item()
        for part in (0.0, 0.1, 0.3, 0.6)
    ]
    assert drifts == sorted(drifts)
    assert drifts[0] == 0 < drifts[1]


def test_small_drift_is_not_lost_to_rounding():
    kept = weights(0)
    ratio = value({n: w * (1 + 1e-9) for n, w in kept.items()}, kept).item() / (2e-9) ** 2
    assert ratio == pytest.approx(1, rel=1e-5)


def test_a_silent_head_drifts_by_one_and_one_that_was_silent_stays_finite():
    kept = weights(0)
    silent = {name: torch.zeros_like(w) for name, w in kept.items()}
    assert value(silent, kept).item() == pytest.approx(1)
    assert math.isfinite(value(kept, silent).item())


def test_half_precision_is_compared_in_float64():
    now, kept = weights(1, torch.bfloat16), weights(0, torch.bfloat16)
    wide = [{name: w.double() for name, w in side.items()} for side in (now, kept)]
    found = value(now, kept)
    assert found.dtype == torch.float32
    assert_close(found.double(), value(*wide), rtol=1e-6, atol=0)


def test_the_reference_gets_no_gradient():
    kept = {name: w.requires_grad_() for name, w in weights(0).items()}
    value({name: w.requires_grad_() for name, w in weights(1).items()}, kept).backward()
    assert all(w.grad is None for w in kept.values())


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="circuits='q': choose one of 'both', 'qk', 'ov'"):
        HeadWeightDrift("q")
    with pytest.raises(ValueError, match="current activations hold no 'W_Q'"):
        HeadWeightDrift()(Activations(), Activations(**weights(0)), LABELS)
    assert Sum({"weights": HeadWeightDrift()}).needs == {"weights"}
