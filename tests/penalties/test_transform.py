import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.penalties import Activations, Labels, OVTransformDrift, Sum

HEADS, D, RANK = 3, 6, 2
LABELS = Labels(
    torch.ones(1, 1, dtype=torch.bool),
    torch.ones(1, HEADS, 1, dtype=torch.bool),
    torch.ones(1, HEADS, 1, 1, dtype=torch.bool),
    torch.zeros(0, dtype=torch.long),
)
KINDS = ["strict", "turned"]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def weights(seed=0):
    return {
        "W_V": random(HEADS, D + 1, RANK, seed=seed),
        "W_O": random(HEADS, RANK, D, seed=seed + 100),
    }


def value(now, kept, kind="strict", *parts):
    return OVTransformDrift(kind, *parts)(Activations(**now), Activations(**kept), LABELS)


def with_stream(side, matrix):
    """The same heads in a stream that was rotated."""
    value_, bias = side["W_V"][:, :-1], side["W_V"][:, -1:]
    return {"W_V": torch.cat([matrix.mT @ value_, bias], 1), "W_O": side["W_O"] @ matrix}


def rotation(seed=7):
    return torch.linalg.qr(random(D, D, seed=seed)).Q


def test_strict_equals_whole_matrices():
    now, kept = weights(1), weights()
    direction, scale, translation = [], [], []
    for head in range(HEADS):
        m, m0 = (side["W_V"][head, :-1] @ side["W_O"][head] for side in (now, kept))
        v, v0 = (side["W_V"][head, -1] @ side["W_O"][head] for side in (now, kept))
        direction.append(1 - (m * m0).sum() / m.norm() / m0.norm())
        scale.append((m.norm() / m0.norm()).log() ** 2)
        translation.append((v - v0).square().sum() / (m0.square().sum() + v0.square().sum()))
    parts = [torch.stack(part).mean() for part in (direction, scale, translation)]
    for place, part in enumerate(parts):
        alone = [float(place == other) for other in range(3)]
        assert_close(value(now, kept, "strict", *alone), part)
    assert_close(
        value(now, kept, "strict", 2.0, 0.5, 3.0), 2 * parts[0] + parts[1] / 2 + 3 * parts[2]
    )


def test_turned_equals_whole_matrices():
    now, kept = weights(1), weights()
    found = []
    for head in range(HEADS):
        sides = []
        for side in (now, kept):
            m = side["W_V"][head, :-1] @ side["W_O"][head]
            p = torch.linalg.svdvals(m).square()
            p = p / p.sum()
            ranks = [(p**order).sum().log() / (1 - order) for order in (2, 3, 4)]
            power = torch.linalg.matrix_power
            shares = [
                m.trace() / (math.sqrt(RANK) * m.norm()),
                power(m, 2).trace() / (m @ m.T).trace(),
                power(m, 4).trace() / power(m @ m.T, 2).trace(),
            ]
            sides.append((torch.stack(ranks), torch.stack(shares)))
        found.append(sum((a - b).square().mean() for a, b in zip(*sides, strict=True)))
    assert_close(value(now, kept, "turned", 1.0, 0.0, 0.0), torch.stack(found).mean())
    lengths = [(side["W_V"][:, -1:] @ side["W_O"])[:, 0].norm(dim=-1) for side in (now, kept)]
    size = (kept["W_V"][:, :-1] @ kept["W_O"]).square().sum((1, 2)) + lengths[1].square()
    moved = ((lengths[0] - lengths[1]).square() / size).mean()
    assert_close(value(now, kept, "turned", 0.0, 0.0, 1.0), moved)


def test_by_hand():
    # A copy of one direction, of which half is turned by a right angle, and doubled.
    one = torch.zeros(1, 3, 1)
    one[0, 0] = 1
    kept = {"W_V": one, "W_O": torch.tensor([[[1.0, 0.0]]])}
    now = {"W_V": one, "W_O": torch.tensor([[[0.0, 2.0]]])}
    labels = Labels(
        *(torch.ones(s, dtype=torch.bool) for s in ((1, 1), (1, 1, 1), (1, 1, 1, 1))),
        torch.zeros(0, dtype=torch.long),
    )

    def of(*options):
        return OVTransformDrift(*options)(Activations(**now), Activations(**kept), labels).item()

    assert of("strict", 1.0, 0.0, 0.0) == pytest.approx(1)
    assert of("strict", 0.0, 1.0, 0.0) == pytest.approx(math.log(2) ** 2)
    assert of("strict", 0.0, 0.0, 1.0) == 0
    # Rank one stays; it copied wholly, and does so no more, once, twice or four times.
    assert of("turned", 1.0, 0.0, 0.0) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_held_apart(kind):
    kept = weights()
    bias = kept["W_V"].clone()
    bias[:, -1] *= 3
    grown = {**kept, "W_O": 2 * kept["W_O"]}
    assert value(grown, kept, kind, 1.0, 0.0, 0.0).item() == pytest.approx(0, abs=1e-12)
    assert value(grown, kept, kind, 0.0, 1.0, 0.0).item() == pytest.approx(math.log(2) ** 2)
    moved = {**kept, "W_V": bias}
    assert value(moved, kept, kind, 1.0, 1.0, 0.0).item() == pytest.approx(0, abs=1e-12)
    assert value(moved, kept, kind, 0.0, 0.0, 1.0).item() > 0.01


def test_only_the_turned_kind_lets_the_stream_turn():
    kept = weights()
    now = with_stream(kept, rotation())
    assert value(now, kept, "turned").item() == pytest.approx(0, abs=1e-12)
    assert value(now, kept, "strict").item() > 0.1
    # Turning what is read alone is another map.
    half = {**kept, "W_V": now["W_V"]}
    assert value(half, kept, "turned", 1.0, 0.0, 0.0).item() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_basis_within_the_head_is_no_drift(kind):
    kept = weights()
    inner = random(RANK, RANK, seed=9)
    now = {"W_V": kept["W_V"] @ inner, "W_O": inner.inverse() @ kept["W_O"]}
    assert value(now, kept, kind).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_with_zero_gradient_at_the_reference_and_right_elsewhere(kind):
    now = {name: w.requires_grad_() for name, w in weights().items()}
    found = value(now, weights(), kind)
    found.backward()
    assert_close(found.item(), 0.0, atol=1e-15, rtol=0)
    assert all(w.grad.abs().max() < 1e-14 for w in now.values())

    def of(one, other):
        return value({"W_V": one, "W_O": other}, weights(), kind)

    assert torch.autograd.gradcheck(of, tuple(w.requires_grad_() for w in weights(1).values()))


@pytest.mark.parametrize("kind", KINDS)
def test_it_grows_with_the_damage(kind):
    kept, other = weights(), weights(1)
    drifts = [
        value({n: torch.lerp(w, other[n], part) for n, w in kept.items()}, kept, kind).item()
        for part in (0.0, 0.1, 0.3, 0.6)
    ]
    assert drifts == sorted(drifts)
    assert drifts[-1] > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_silent_heads_stay_finite(kind):
    kept = weights()
    silent = {name: torch.zeros_like(w) for name, w in kept.items()}
    for now, base in ((silent, kept), (kept, silent), (silent, silent)):
        given = {name: w.clone().requires_grad_() for name, w in now.items()}
        found = value(given, base, kind)
        found.backward()
        assert found.isfinite()
        assert all(w.grad.isfinite().all() for w in given.values())
    assert value(silent, silent, kind) == 0
    # A millionth of its size, at most.
    assert value(silent, kept, kind, 0.0, 1.0, 0.0).item() == pytest.approx(math.log(1e6) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_compared_in_float64_and_nothing_waits(kind):
    now, kept = ({n: w.bfloat16() for n, w in weights(seed).items()} for seed in (1, 0))
    found = value(now, kept, kind)
    assert found.dtype == torch.float32
    wide = [{n: w.double() for n, w in side.items()} for side in (now, kept)]
    assert_close(found.double(), value(*wide, kind), rtol=1e-6, atol=0)
    meta = [{n: w.to("meta") for n, w in side.items()} for side in (now, kept)]
    assert value(*meta, kind).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_gets_no_gradient(kind):
    kept = {name: w.requires_grad_() for name, w in weights().items()}
    value({name: w.requires_grad_() for name, w in weights(1).items()}, kept, kind).backward()
    assert all(w.grad is None for w in kept.values())


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="kind='loose': choose one of 'strict', 'turned'"):
        OVTransformDrift("loose")
    with pytest.raises(ValueError, match=r"a weight of OVTransformDrift is -1.0: choose 0 or more"):
        OVTransformDrift("strict", -1.0)
    with pytest.raises(ValueError, match="all 0"):
        OVTransformDrift("strict", 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="current activations hold no 'W_V'"):
        OVTransformDrift()(Activations(), Activations(**weights()), LABELS)
    assert Sum({"ov": OVTransformDrift()}).needs == {"weights"}
