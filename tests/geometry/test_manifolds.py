"""The shape of planted manifolds, from samples with noise."""

import math

import pytest
import torch

from circuitkeep.circuits import CircuitError, Manifold
from circuitkeep.geometry.manifolds import manifold_shape
from circuitkeep.manifolds import ManifoldRows, Samples

CLASSES, WIDTH = 24, 40


def measured(points, noise, rows=60, per_class=2, seed=0):
    """Prompts with a few noisy samples of every class."""
    generator = torch.Generator().manual_seed(seed)
    manifold = Manifold("planted", "position", 1, (0, 2 * len(points) - 1), step=2)
    frame = torch.linalg.qr(torch.randn(WIDTH, points.shape[1], generator=generator)).Q
    labels = torch.arange(len(points)).repeat(per_class).repeat(rows)
    row = torch.arange(rows).repeat_interleave(per_class * len(points))
    values = points.float()[labels] @ frame.T + 3.0
    values = values + noise * torch.randn(values.shape, generator=generator)
    sums = torch.zeros(rows, len(points), WIDTH, dtype=torch.float64)
    sums = sums.index_put((row, labels), values.double(), accumulate=True)
    counts = torch.full((rows, len(points)), per_class)
    found = ManifoldRows(manifold, sums, counts, values.double().square().sum().item())
    return found, Samples(manifold, values, labels, row, torch.zeros_like(row))


def helix():
    """Two turns, rising."""
    phase = 4 * math.pi * torch.arange(CLASSES) / CLASSES
    return torch.stack([3 * phase.cos(), 3 * phase.sin(), phase / 4], 1)


def test_a_helix_without_noise():
    shape = manifold_shape(*measured(helix(), noise=0.0))
    assert (shape.dimension, shape.signal_dimension) == (3, 3)
    assert shape.explained == pytest.approx(1)
    assert shape.reliability == pytest.approx(1)
    assert shape.turn == pytest.approx(4 * math.pi / CLASSES, rel=0.05)
    assert shape.fourier[1] == max(shape.fourier) > 0.8
    # One turn is twelve classes: half of it apart, points lie opposite.
    assert shape.ripple.distance == pytest.approx(6, abs=1)
    assert shape.ripple.depth < -0.5 < 0.5 < shape.ripple.rise
    assert shape.distance_share > 0.8
    assert shape.probe.rmse < 0.1 < shape.probe.guessing
    assert (shape.samples, shape.prompts) == (60 * 48, 60)
    assert len(shape.coordinates) == len(shape.cosines) == CLASSES
    points = torch.tensor(shape.coordinates)
    assert torch.allclose(torch.cdist(points, points), torch.cdist(helix(), helix()), atol=1e-4)


def test_noise_is_taken_off():
    exact = manifold_shape(*measured(helix(), noise=0.0))
    shape = manifold_shape(*measured(helix(), noise=8.0))
    assert shape.dimension > 10
    assert shape.signal_dimension <= 4
    assert shape.turn > exact.turn + 0.5
    assert abs(shape.signal_turn - exact.turn) < abs(shape.turn - exact.turn)
    # By hand: 9 per class is signal, 64 / 120 in each of 40 directions is noise.
    assert shape.reliability == pytest.approx(9.2 / (9.2 + 40 * 64 / 120), abs=0.1)
    assert shape.explained == pytest.approx(9.2 / (9.2 + 40 * 64), abs=0.003)


def test_a_variable_that_the_stream_does_not_know():
    rows, samples = measured(torch.zeros(CLASSES, 3), noise=1.0)
    shape = manifold_shape(rows, samples)
    assert abs(shape.explained) < 0.005
    assert abs(shape.reliability) < 0.3
    assert shape.probe.rmse > 0.97 * shape.probe.guessing
    assert rows.explained > 0.005  # more classes explain more, of noise too


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="same at all values of position there; name a later"):
        manifold_shape(*measured(torch.zeros(CLASSES, 3), noise=0.0))
    rows, samples = measured(helix(), noise=0.0)
    few = Manifold("planted", "position", 1, (0, 3), step=2, dimensions=1)
    own = ManifoldRows(few, rows.sums[:, :2], rows.counts[:, :2], 1.0)
    with pytest.raises(ValueError, match="2 classes; its shape needs three"):
        manifold_shape(own, samples)
    rows.counts[:, 5] = 0
    rows.counts[7, 5] = 1
    with pytest.raises(CircuitError, match=r"position is never 10 to 11 on these"):
        manifold_shape(rows, samples)
