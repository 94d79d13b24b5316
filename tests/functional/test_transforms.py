"""Heads as transforms: planted ones are read back, and nothing depends on the basis."""

import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.transforms import (
    cleanness,
    effective_rank,
    polar,
    principal_angles,
    product_cosine,
    recurrences,
    spectrum_ranks,
    squared_norm,
    subspace_overlap,
)


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q


def factors(read, stretch, written, seed=9):
    """The map in a gauge of its own."""
    generator = torch.Generator().manual_seed(seed)
    rank = len(stretch)
    gauge = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    return read * stretch @ gauge, torch.linalg.inv(gauge) @ written.T


STRETCH = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)


def test_a_planted_map_is_taken_apart():
    read, written = orthonormal(12, 3, 0), orthonormal(12, 3, 1)
    a, b = factors(read, STRETCH, written)
    found = polar(a, b)
    assert_close(found.stretch, STRETCH)
    assert_close(found.read * found.stretch @ found.written.T, a @ b)
    assert_close(found.read.T @ found.read, torch.eye(3, dtype=torch.float64))
    # Against the whole matrix.
    whole = torch.linalg.svd(a @ b)
    assert_close(whole.S[:3], STRETCH)
    assert_close(whole.U[:, :3] @ whole.Vh[:3], found.read @ found.written.T)


def test_in_other_shapes_and_batches():
    a = torch.randn(2, 5, 12, 3)
    b = torch.randn(2, 5, 3, 7)
    found = polar(a, b)
    assert found.read.shape == (2, 5, 12, 3)
    assert found.written.shape == (2, 5, 7, 3)
    assert_close(found.read * found.stretch[..., None, :] @ found.written.mT, a @ b)


def test_effective_rank_by_hand():
    assert effective_rank(torch.tensor([1.0, 1, 1, 0])).item() == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0, 0])).item() == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1])).item() == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )
    assert effective_rank(torch.zeros(3)).item() == 0


def clean(read, stretch, written):
    return [float(v) for v in cleanness(polar(*factors(read, stretch, written)))]


def test_clean_ones_are_called_so():
    read, written = orthonormal(12, 3, 0), orthonormal(12, 3, 1)
    alike = torch.full((3,), 2.0, dtype=torch.float64)
    rotation, projection, *_ = clean(read, alike, written)
    assert rotation == pytest.approx(0, abs=1e-12)
    assert projection > 0.5
    # A copy of what is read, and its opposite.
    assert clean(read, alike, read) == pytest.approx([0, 0, 1 - 3 / 12, 2], abs=1e-12)
    assert clean(read, alike, -read) == pytest.approx([0, 0, 1 - 3 / 12, -2], abs=1e-12)
    full = orthonormal(4, 4, 2)
    four = torch.full((4,), 1.5, dtype=torch.float64)
    assert clean(full, four, full) == pytest.approx([0, 0, 0, 1.5], abs=1e-12)


def test_shares_against_the_nearest_ones():
    """By brute force: the best multiple of each clean map."""
    read, written = orthonormal(9, 3, 0), orthonormal(9, 3, 1)
    a, b = factors(read, STRETCH, written)
    found = cleanness(polar(a, b))
    square = (a @ b).square().sum()
    for share, target in (
        (found.rotation, read @ written.T),
        (found.projection, read @ read.T),
        (found.scaling, torch.eye(9, dtype=torch.float64)),
    ):
        best = (a @ b * target).sum() / target.square().sum()
        assert float(share) == pytest.approx(float((a @ b - best * target).square().sum() / square))
    best = (a @ b * (read @ read.T)).sum() / 3
    assert float(found.gain) == pytest.approx(float(best))


def test_lower_rank_and_nothing():
    read = orthonormal(8, 3, 0)
    low = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    assert clean(read, low, read)[0] == pytest.approx(0, abs=1e-12)
    zero = cleanness(polar(torch.zeros(6, 2), torch.zeros(2, 6)))
    assert [float(v) for v in zero] == [0, 0, 0, 0]


def test_no_number_depends_on_the_basis():
    read, written = orthonormal(12, 3, 0), orthonormal(12, 3, 1)
    a, b = factors(read, STRETCH, written)
    turn = orthonormal(12, 12, 5)
    before, after = polar(a, b), polar(turn.T @ a, b @ turn)
    assert_close(before.stretch, after.stretch)
    for own, other in zip(cleanness(before), cleanness(after), strict=True):
        assert_close(own, other)
    assert_close(
        principal_angles(before.read, before.written), principal_angles(after.read, after.written)
    )


@pytest.mark.parametrize("angle", [1e-6, 0.1, 1.0, math.pi / 2])
def test_planted_angles(angle):
    frame = orthonormal(10, 4, 3)
    x = frame[:, :2]
    tilted = math.cos(angle) * frame[:, 1] + math.sin(angle) * frame[:, 2]
    y = torch.stack([frame[:, 0], tilted], 1) @ torch.randn(2, 2, dtype=torch.float64)
    assert principal_angles(x, y).tolist() == pytest.approx([0, angle], abs=1e-9)
    assert subspace_overlap(x, y).item() == pytest.approx((1 + math.cos(angle) ** 2) / 2)


def test_of_different_sizes():
    frame = orthonormal(10, 5, 3)
    assert_close(principal_angles(frame[:, :1], frame[:, :4]), torch.zeros(1, dtype=torch.float64))
    angles = principal_angles(frame[:, :2], frame[:, 1:5])
    assert angles.tolist() == pytest.approx([0, math.pi / 2], abs=1e-9)


def test_overlap_of_random_subspaces():
    overlaps = [
        subspace_overlap(orthonormal(40, 3, seed), orthonormal(40, 5, 1000 + seed)).item()
        for seed in range(300)
    ]
    assert sum(overlaps) / 300 == pytest.approx(5 / 40, abs=0.01)


def test_cosine_and_size_of_planted_maps():
    read, written = orthonormal(12, 3, 0), orthonormal(12, 3, 1)
    one = factors(read, STRETCH, written)
    # Of the second direction the sign is turned: 9 - 4 + .25 of 9 + 4 + .25.
    other = factors(read, 5 * STRETCH * torch.tensor([1.0, -1.0, 1.0]), written, seed=8)
    assert product_cosine(*one, *other).item() == pytest.approx(5.25 / 13.25)
    assert squared_norm(*one).item() == pytest.approx(13.25)
    assert product_cosine(*one, 0 * one[0], one[1]) == 0


def test_ranks_of_a_planted_spectrum():
    read, written = orthonormal(12, 3, 0), orthonormal(7, 3, 1)
    share = STRETCH.square() / 13.25
    found = spectrum_ranks(*factors(read, STRETCH, written))
    for order, value in zip((2, 3, 4), found, strict=True):
        assert value.item() == pytest.approx(math.log((share**order).sum()) / (1 - order))
    alike = spectrum_ranks(*factors(read, torch.ones(3).double(), written))
    assert_close(alike, torch.full((3,), math.log(3.0)).double())
    assert spectrum_ranks(torch.zeros(4, 2), torch.zeros(2, 4)).tolist() == [0, 0, 0]


def test_recurrences_of_copies_turns_and_shifts():
    basis = orthonormal(12, 4, 0)
    ones = torch.ones(4, dtype=torch.float64)
    copy = recurrences(*factors(basis, ones, basis))
    assert_close(copy, torch.ones(3).double())
    against = recurrences(*factors(basis, ones, -basis))
    assert_close(against, torch.tensor([-1.0, 1.0, 1.0]).double())
    # By a right angle in two planes: twice is against, four times is as before.
    turned = basis[:, [1, 0, 3, 2]] * torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    assert_close(
        recurrences(*factors(basis, ones, turned)), torch.tensor([0.0, -1.0, 1.0]).double()
    )
    elsewhere = orthonormal(12, 8, 3)
    away = recurrences(*factors(elsewhere[:, :4], ones, elsewhere[:, 4:]))
    assert_close(away, torch.zeros(3).double(), atol=1e-12, rtol=0)
    assert recurrences(torch.zeros(4, 2), torch.zeros(2, 4)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("figure", [spectrum_ranks, recurrences, squared_norm])
def test_gradients_of_figures_are_right(figure):
    a, b = factors(orthonormal(5, 3, 0), STRETCH, orthonormal(5, 3, 1))
    assert torch.autograd.gradcheck(figure, (a.requires_grad_(), b.requires_grad_()))
    kept = factors(orthonormal(5, 3, 4), STRETCH, orthonormal(5, 3, 5))
    assert torch.autograd.gradcheck(lambda *m: product_cosine(*m, *kept), (a, b))
