import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.manifolds import fit_similarity
from circuitkeep.functional.procrustes import distance_after_fit, nuclear_norm, spread_and_frames


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(d, seed=1):
    return torch.linalg.qr(random(d, d, seed=seed)).Q


@pytest.mark.parametrize(("points", "d"), [(16, 40), (5, 3), (9, 2), (3, 8)])
def test_it_is_the_residual_of_the_fit_by_singular_values(points, d):
    kept, now = random(points, d), random(points, d, seed=2)
    size = (kept - kept.mean(0)).square().sum()
    left = distance_after_fit(now, kept, torch.ones(points, dtype=torch.bool), scale=True)
    assert_close(left / size, fit_similarity(now, kept).residual)


def test_a_triangle_by_hand():
    # Corners of an equilateral triangle, of which one has been moved to the middle of the others.
    kept = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, math.sqrt(3)]])
    now = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    present = torch.ones(3, dtype=torch.bool)
    # Its singular values are 2 and 2 (squared sizes 2 + 2), those of the cross product 2 and 0.
    assert distance_after_fit(now, kept, present, scale=True).item() == pytest.approx(2)
    assert distance_after_fit(now, kept, present, scale=False).item() == pytest.approx(2)
    assert distance_after_fit(2 * now, kept, present, scale=True).item() == pytest.approx(2)
    assert distance_after_fit(2 * now, kept, present, scale=False).item() == pytest.approx(4)


@pytest.mark.parametrize("scale", [True, False])
def test_similar_points_leave_nothing(scale):
    kept = random(2, 3, 10, 12)
    now = (3.0 if scale else 1.0) * kept @ rotation(12) + random(12, seed=3)
    present = torch.ones(2, 3, 10, dtype=torch.bool)
    left = distance_after_fit(now, kept, present, scale)
    assert_close(left, torch.zeros(2, 3, dtype=torch.float64), atol=1e-11, rtol=0)


@pytest.mark.parametrize("scale", [True, False])
def test_absent_points_do_not_count(scale):
    kept, now = random(6, 4), random(6, 4, seed=2)
    present = torch.tensor([True, False, True, True, False, True])
    left = distance_after_fit(now, kept, present, scale)
    all_of_them = torch.ones(4, dtype=torch.bool)
    assert_close(left, distance_after_fit(now[present], kept[present], all_of_them, scale))
    nothing = distance_after_fit(now, kept, torch.zeros(6, dtype=torch.bool), scale)
    assert nothing == 0


@pytest.mark.parametrize("scale", [True, False])
def test_gradient_is_right_and_nothing_where_the_points_fit(scale):
    kept, now = random(2, 6, 5), random(2, 6, 5, seed=2).requires_grad_()
    present = torch.ones(2, 6, dtype=torch.bool)
    present[1, 4:] = False
    assert torch.autograd.gradcheck(lambda y: distance_after_fit(y, kept, present, scale), now)
    # Of a circle both singular values are the same, and the others are all 0.
    angles = torch.arange(6) * math.pi / 3
    circle = torch.zeros(6, 5, dtype=torch.float64)
    circle[:, :2] = torch.stack([angles.cos(), angles.sin()], 1)
    turned = (circle @ rotation(5)).requires_grad_()
    left = distance_after_fit(turned, circle, torch.ones(6, dtype=torch.bool), scale)
    left.backward()
    assert_close(left.item(), 0.0, atol=1e-12, rtol=0)
    assert turned.grad.abs().max() < 1e-7


def test_points_fallen_into_one_leave_the_whole_spread():
    kept = random(7, 4)
    now = torch.zeros_like(kept).requires_grad_()
    left = distance_after_fit(now, kept, torch.ones(7, dtype=torch.bool), scale=True)
    left.backward()
    assert_close(left, (kept - kept.mean(0)).square().sum())
    assert now.grad.isfinite().all()


def test_nuclear_norm_is_the_sum_of_singular_values():
    widths = torch.logspace(0, -8, 7, dtype=torch.float64)
    matrix = torch.linalg.qr(random(9, 7)).Q * widths @ rotation(7)
    assert_close(nuclear_norm(matrix), widths.sum(), rtol=1e-12, atol=0)
    assert nuclear_norm(torch.zeros(3, 4, 5)).tolist() == [0, 0, 0]
    assert torch.autograd.gradcheck(nuclear_norm, random(2, 3, 5).requires_grad_())


def test_spread_and_frames_by_a_naive_loop():
    points, present = random(4, 2, 5, 3), random(4, 2, 5, seed=9) > 0
    present[:, 1, 3] = False
    spread, frames = spread_and_frames(points, present, torch.tensor([3, 2]))
    assert frames.shape == (2, 3, 3)
    for manifold in range(2):
        means = [
            points[rows, manifold, i].mean(0)
            for i in range(5)
            if (rows := present[:, manifold, i]).any()
        ]
        centred = torch.stack(means) - torch.stack(means).mean(0)
        assert_close(spread[manifold], centred.square().sum(1).mean())
        wide = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1)
        wide = wide[:, : 3 - manifold]
        assert_close(frames[manifold] @ frames[manifold].mT, wide @ wide.mT)
    assert not frames[1, :, 2].any()


def test_points_in_a_line_have_one_direction():
    line = torch.arange(5.0)[:, None] * torch.tensor([3.0, 4.0, 0.0])
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    _, frames = spread_and_frames(line.expand(2, 5, 3), everywhere, torch.tensor(2))
    assert_close(frames[:, 0].abs(), torch.tensor([0.6, 0.8, 0.0]).double())
    assert not frames[:, 1].any()
