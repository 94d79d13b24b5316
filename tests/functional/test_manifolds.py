"""Manifolds: planted shapes and transforms are read back, with and without noise."""

import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.manifolds import (
    dimension,
    drift_of_products,
    fit_similarity,
    transform_drift,
)

WIDE = torch.float64


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=WIDE)).Q


def ring(points=24, width=16, seed=0, cycles=(1, 3)):
    """A closed curve of `cycles`, two dimensions each, in a random subspace."""
    steps = 2 * math.pi * torch.arange(points, dtype=WIDE) / points
    parts = [f(c * steps) / c for c in cycles for f in (torch.cos, torch.sin)]
    return torch.stack(parts, 1) @ orthonormal(width, 2 * len(cycles), seed).T


def turned(points, angle, seed=0, cycles=2):
    """The ring turned by `angle` in the plane of its first cycle."""
    frame = orthonormal(points.shape[1], 2 * cycles, seed)
    plane = frame[:, :2]
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=WIDE
    )
    return points @ (
        torch.eye(points.shape[1], dtype=WIDE) + plane @ (turn - torch.eye(2)) @ plane.T
    )


def test_dimension():
    assert dimension(ring(), 0.89) == 2  # the third cycle holds a tenth of the variance
    assert dimension(ring(), 0.94) == 3
    assert dimension(ring(), 0.99) == 4
    assert dimension(ring() + 7, 0.89) == 2
    assert dimension(torch.ones(5, 3)) == 0


def test_a_planted_similarity_is_read_back():
    x = ring()
    rotation, shift = orthonormal(16, 16, 4), torch.randn(16, dtype=WIDE)
    found = fit_similarity(x, 2.5 * x @ rotation + shift)
    assert found.scale.item() == pytest.approx(2.5, abs=1e-5)
    assert found.residual.item() == pytest.approx(0, abs=1e-5)
    assert_close(found.translation, 1.5 * 0 * shift + (2.5 * x @ rotation + shift - x).mean(0))
    # The rotation, as far as the points tell of it: in their own subspace.
    own = x - x.mean(0)
    assert_close(own @ found.read @ found.written.T, own @ rotation, atol=1e-9, rtol=1e-9)


def test_a_reflection_is_one_too():
    x = ring()
    found = fit_similarity(x, x.flip(1))
    assert found.residual.item() == pytest.approx(0, abs=1e-9)


def test_noise_is_what_is_left():
    x = ring(200, cycles=(1, 2))
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(x.shape, generator=generator, dtype=WIDE)
    found = fit_similarity(x, x + noise)
    expected = noise.square().sum() / (x + noise).square().sum()
    assert found.residual.item() == pytest.approx(expected.item(), rel=0.15)


def test_points_all_alike():
    with pytest.raises(ValueError, match="all the same"):
        fit_similarity(torch.ones(4, 3), torch.randn(4, 3))


@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
def test_drift_within_the_subspace(angle):
    x = ring()
    y = 1.7 * turned(x, angle) + 0.25
    found = transform_drift(x, y, 4)
    radius = (x - x.mean(0)).square().sum(1).mean().sqrt()
    assert found.rotation.item() == pytest.approx(angle, abs=1e-5)
    assert found.log_scale.item() == pytest.approx(math.log(1.7), abs=1e-5)
    assert found.translation.item() == pytest.approx(0.25 * 4 / radius.item(), abs=1e-5)
    assert found.tilt.item() == pytest.approx(0, abs=1e-5)
    assert found.shape.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("angle", [0.01, 0.4, 1.2])
def test_a_tilted_subspace(angle):
    beside = torch.randn(16, 1, generator=torch.Generator().manual_seed(3), dtype=WIDE)
    frame = torch.linalg.qr(torch.cat([orthonormal(16, 4, 0), beside], 1)).Q
    tilted = frame[:, :4].clone()
    tilted[:, 3] = math.cos(angle) * frame[:, 3] + math.sin(angle) * frame[:, 4]
    y = ring() @ frame[:, :4] @ tilted.T
    found = transform_drift(ring(), y, 4)
    assert found.tilt.item() == pytest.approx(angle, abs=1e-5)
    assert found.rotation.item() == pytest.approx(0, abs=1e-5)
    assert found.shape.item() == pytest.approx(1, abs=1e-5)


def test_another_shape_is_residual():
    x = ring(cycles=(1, 3))
    found = transform_drift(x, ring(cycles=(1, 5)), 4)
    assert found.shape.item() < 0.95


def test_no_figure_depends_on_the_basis():
    x, y = ring(), 1.3 * turned(ring(), 0.5) + 0.1 * ring(seed=7)
    turn = orthonormal(16, 16, 9)
    for own, other in zip(
        transform_drift(x, y, 4), transform_drift(x @ turn, y @ turn, 4), strict=True
    ):
        assert_close(own, other)


def test_more_dimensions_than_there_are():
    with pytest.raises(ValueError, match="dimensions=5: the points span 4"):
        transform_drift(ring(), ring(), 5)
    with pytest.raises(ValueError, match="dimensions=0"):
        transform_drift(ring(), ring(), 0)


def test_place_by_hand():
    """Two points at -1 and 1 that move by 1 in all: one unit of two."""
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    found = transform_drift(x, torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), 1)
    assert found.place.item() == pytest.approx(1 - 1 / 2)
    assert found.shape.item() == pytest.approx(1)  # two points are always alike
    assert found.translation.item() == pytest.approx(0.5)
    assert found.log_scale.item() == pytest.approx(0.5 * math.log(1.25 / 1))
    assert found.tilt.item() == pytest.approx(math.atan(0.5))
    assert transform_drift(x, -x, 1).place.item() == pytest.approx(1 - 8 / 2)


def test_several_at_once_are_each_by_itself():
    x = torch.stack([ring(), ring(seed=1)])
    y = 1.3 * torch.stack([turned(ring(), 0.5), ring(seed=2)]) + 0.1
    both = transform_drift(x, y, 4)
    for place in range(2):
        for own, found in zip(transform_drift(x[place], y[place], 4), both, strict=True):
            assert_close(own, found[place])


def test_products_tell_what_points_do():
    x, y = ring(), 1.3 * turned(ring(), 0.5) + 0.1 * ring(seed=7)
    both = torch.cat([x, y])
    for own, found in zip(
        transform_drift(x, y, 4), drift_of_products(both @ both.T, 4), strict=True
    ):
        assert_close(own, found)


def test_the_shape_is_what_the_fit_leaves():
    x = ring()
    generator = torch.Generator().manual_seed(1)
    y = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=WIDE)
    left = fit_similarity(x, y).residual
    assert transform_drift(x, y, 4).shape.item() == pytest.approx(1 - left.item(), abs=1e-6)
