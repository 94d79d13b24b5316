import pytest
import torch
from torch.testing import assert_close

from circuitkeep.penalties import Activations, CompositionDrift, Labels

D, RANK = 6, 2
NAMES = ((0, 2), (1, 0), (1, 3))
LABELS = Labels(
    torch.ones(1, 1, dtype=torch.bool),
    torch.ones(1, 3, 1, dtype=torch.bool),
    torch.ones(1, 3, 1, 1, dtype=torch.bool),
    torch.zeros(0, dtype=torch.long),
)
SHAPES = {"W_Q": (D + 1, RANK), "W_K": (D + 1, RANK), "W_V": (D + 1, RANK), "W_O": (RANK, D)}


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def value(now, kept, *options):
    current = Activations(heads=NAMES, **now)
    return CompositionDrift(*options)(current, Activations(**kept), LABELS)


def naive(side, writer, reader, kind):
    """From whole matrices."""
    query, key, values, out = (side[name] for name in SHAPES)
    write = values[writer, :-1] @ out[writer]
    qk = query[reader, :-1] @ key[reader, :-1].T
    read = {"Q": qk, "K": qk.T, "V": values[reader, :-1] @ out[reader]}[kind]
    return ((write @ read).norm() / write.norm() / read.norm()).item()


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_equals_whole_matrices(kind):
    now, kept = weights(1), weights(0)
    changes = [
        (naive(now, 0, reader, kind) / naive(kept, 0, reader, kind) - 1) ** 2 for reader in (1, 2)
    ]
    assert value(now, kept, kind).item() == pytest.approx(sum(changes) / 2)
    assert value(now, kept, kind, "L0H2", "L1H3").item() == pytest.approx(changes[1])


def test_by_hand():
    # The reader reads what is written, then half of what it reads is something else.
    def side(read):
        one = torch.zeros(3, D + 1, 1)
        one[:, 0] = 1
        key = torch.zeros(3, D + 1, 1)
        key[:, :D, 0] = torch.tensor(read)
        return {"W_Q": one, "W_K": key, "W_V": one, "W_O": one[:, :D].mT}

    kept, now = side([1.0, 0, 0, 0, 0, 0]), side([0.6, 0.8, 0, 0, 0, 0])
    assert value(now, kept, "K").item() == pytest.approx(0.16)
    assert value(now, kept, "Q").item() == pytest.approx(0)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_zero_with_zero_gradient_at_the_reference_and_right_elsewhere(kind):
    now = {name: w.requires_grad_() for name, w in weights(0).items()}
    found = value(now, weights(0), kind)
    found.backward()
    assert found == 0
    assert not any(w.grad is not None and w.grad.any() for w in now.values())
    kept = weights(0)

    def of(*tensors):
        return value(dict(zip(SHAPES, tensors, strict=True)), kept, kind)

    assert torch.autograd.gradcheck(of, tuple(w.requires_grad_() for w in weights(1).values()))


def test_it_grows_as_the_reader_turns_away_and_a_silent_head_stays_finite():
    kept = weights(0)
    write = kept["W_O"][0].mT @ torch.linalg.inv(kept["W_O"][0] @ kept["W_O"][0].mT)
    across = kept["W_K"].clone()
    across[1, :-1] -= write @ (kept["W_O"][0] @ across[1, :-1])
    drifts = [
        value(
            {**kept, "W_K": torch.lerp(kept["W_K"], across, part)}, kept, "K", None, "L1H0"
        ).item()
        for part in (0.0, 0.2, 0.5, 1.0)
    ]
    assert drifts == sorted(drifts)
    assert drifts[-1] == pytest.approx(1)
    silent = {name: torch.zeros_like(w) for name, w in kept.items()}
    assert value(silent, kept).item() == pytest.approx(1)
    assert value(silent, silent).item() == 0


def test_the_size_of_a_head_does_not_count():
    kept, now = weights(0), weights(1)
    assert_close(value({**now, "W_O": 3 * now["W_O"]}, kept), value(now, kept))


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="kind='k': choose one of 'Q', 'K', 'V'"):
        CompositionDrift("k")
    with pytest.raises(ValueError, match=r"reader='1\.3': name a head as L0H2"):
        CompositionDrift("K", "L0H2", "1.3")
    with pytest.raises(ValueError, match=r"reader L0H2 in a later layer .* \(L0H2, L1H0, L1H3\)"):
        value(weights(0), weights(0), "K", None, "L0H2")
