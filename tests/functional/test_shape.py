"""Shapes that are known by construction, seen through inner products alone."""

import math

import pytest
import torch

from circuitkeep.functional.manifolds import dimension
from circuitkeep.functional.shape import (
    distance_share,
    gram_dimension,
    gram_fourier_shares,
    mean_turn,
    probe_error,
    ripple,
    signal_gram,
    similarity_by_distance,
)


def turned(points, d=24, seed=0):
    """The points in a larger space, turned at random."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(d, points.shape[1], generator=generator).double()).Q
    return points.double() @ frame.T


def circle(n, cycles=1):
    phase = 2 * math.pi * cycles * torch.arange(n).double() / n
    return torch.stack([phase.cos(), phase.sin()], 1)


def wave(n=48, amplitudes=(3, 2, 1)):
    """A closed curve of several frequencies."""
    return torch.cat([a * circle(n, k + 1) for k, a in enumerate(amplitudes)], 1)


@pytest.fixture
def gram():
    points = turned(wave())
    return signal_gram(points, points)


def test_without_noise_all_is_as_from_the_points(gram):
    points = turned(wave())
    centred = points - points.mean(0)
    assert torch.allclose(gram, centred @ centred.T)
    assert gram_dimension(gram) == dimension(points) == 5
    assert gram_dimension(gram, 0.6) == dimension(points, 0.6) == 2
    shares = gram_fourier_shares(gram)
    assert shares[:3].tolist() == pytest.approx([9 / 14, 4 / 14, 1 / 14])


@pytest.mark.parametrize("n", [7, 8, 15, 16])
def test_fourier_shares_are_those_of_the_points(n):
    points = torch.randn(n, 5, generator=torch.Generator().manual_seed(n)).double()
    shares = gram_fourier_shares(signal_gram(points, points))
    power = torch.fft.rfft(points - points.mean(0), dim=0).abs().square().sum(1)[1:]
    power[: (n - 1) // 2] *= 2  # these have a mirror
    assert torch.allclose(shares, power / power.sum())
    assert float(shares.sum()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["line", "circle"])
def test_turns_by_hand(kind):
    points = turned(torch.arange(9.0)[:, None] if kind == "line" else circle(9))
    expected = 0 if kind == "line" else 2 * math.pi / 9
    assert mean_turn(signal_gram(points, points)) == pytest.approx(expected, abs=1e-6)


def test_points_at_random_turn_by_two_thirds_of_pi():
    points = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)).double()
    assert mean_turn(signal_gram(points, points)) == pytest.approx(2 * math.pi / 3, abs=0.02)


def test_the_similarity_of_a_circle_is_the_cosine_of_the_distance():
    points = turned(circle(20))
    gram = signal_gram(points, points)
    expected = (2 * math.pi * torch.arange(11).double() / 20).cos()
    assert torch.allclose(similarity_by_distance(gram), expected)
    assert distance_share(gram) == pytest.approx(1)
    found = ripple(similarity_by_distance(gram))
    assert (found.distance, found.rise) == (None, 0)
    assert found.depth == pytest.approx(-1)


def test_a_rippled_curve_dips_and_rises_and_a_line_does_not():
    points = turned(wave(40, (1, 0.2, 2)))
    gram = signal_gram(points, points)
    found = ripple(similarity_by_distance(gram))
    # By hand: (cos x + .04 cos 2x + 4 cos 3x) / 5.04 is least near x = pi / 3.
    assert found.distance == 7
    assert found.depth < -0.5 < 0.5 < found.rise
    line = turned(torch.arange(20.0)[:, None])
    assert ripple(similarity_by_distance(signal_gram(line, line))).distance is None


def test_distance_explains_nothing_of_points_at_random():
    points = torch.randn(60, 40, generator=torch.Generator().manual_seed(1))
    assert distance_share(signal_gram(points, points)) < 0.1


def halves(points, noise, rows=60, draws=40):
    """Plain means, and the signal's inner products, of noisy prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = points + noise * torch.randn(rows, *points.shape, generator=generator).double()
    grams = []
    for _ in range(draws):
        order = torch.randperm(rows, generator=generator)
        first, second = (prompts[part].mean(0) for part in order.chunk(2))
        grams.append(signal_gram(first, second))
    return prompts.mean(0), torch.stack(grams).mean(0)


def test_halves_take_the_noise_off():
    points = turned(wave(), d=64)
    exact = signal_gram(points, points)
    means, gram = halves(points, noise=4.0)
    noisy = signal_gram(means, means)
    assert float(gram.trace()) == pytest.approx(float(exact.trace()), rel=0.1)
    assert float(noisy.trace()) > 2 * float(exact.trace())
    assert dimension(means) > 20
    assert 3 <= gram_dimension(gram) <= 5
    exact_similarity = similarity_by_distance(exact)
    assert (similarity_by_distance(gram)[1:] - exact_similarity[1:]).abs().max() < 0.12
    assert float(gram_fourier_shares(gram)[0]) == pytest.approx(9 / 14, abs=0.04)


def test_halves_find_the_turn_that_noise_hides():
    points = turned(wave(), d=64)
    exact = mean_turn(signal_gram(points, points))
    means, gram = halves(points, noise=2.0)
    assert mean_turn(signal_gram(means, means)) > 4 * exact
    assert mean_turn(gram) == pytest.approx(exact, abs=0.15)


def test_nothing_but_noise_has_no_dimension():
    zero = torch.zeros(5, 3)
    assert gram_dimension(signal_gram(zero, zero)) == 0
    assert math.isnan(mean_turn(signal_gram(zero, zero)))
    assert math.isnan(distance_share(signal_gram(zero, zero)))
    with pytest.raises(ValueError, match="needs three"):
        mean_turn(torch.zeros(2, 2))


def samples(noise, rows=40, per_row=20, d=12):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(per_row).repeat(rows)
    prompts = torch.arange(rows).repeat_interleave(per_row)
    direction = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    values = labels[:, None] * direction + noise * torch.randn(len(labels), d, generator=generator)
    # What a prompt has of its own is no help on others.
    values = values + 2 * torch.randn(rows, d, generator=generator)[prompts]
    return values.double(), labels.double(), prompts


def test_a_probe_reads_a_planted_direction():
    values, labels, prompts = samples(noise=0.1)
    found = probe_error(values, labels, prompts)
    # The prompts' own part, of size 2 along the direction, is averaged over no more than 12 axes.
    assert found.rmse < 3 < found.guessing
    assert found.guessing == pytest.approx(math.sqrt((20**2 - 1) / 12), rel=1e-6)
    frame = turned(torch.eye(12), d=12, seed=5)
    again = probe_error(values @ frame, labels, prompts)
    assert again == pytest.approx(found, rel=1e-6)


def test_a_probe_of_noise_is_no_better_than_guessing():
    values, labels, prompts = samples(noise=0.1)
    nothing = torch.randn(values.shape, generator=torch.Generator().manual_seed(9))
    found = probe_error(nothing, labels, prompts)
    assert found.rmse > 0.95 * found.guessing
    with pytest.raises(ValueError, match="needs four"):
        probe_error(values, labels, prompts.clamp(max=2))


def test_no_prompt_is_both_learned_from_and_tested_on():
    # Each prompt's label is a number of its own, told by an axis of its own: nothing to carry over.
    prompts = torch.arange(40).repeat_interleave(10)
    labels = torch.randn(40, generator=torch.Generator().manual_seed(0))[prompts]
    values = torch.nn.functional.one_hot(prompts).double()
    found = probe_error(values, labels.double(), prompts)
    assert found.rmse == pytest.approx(found.guessing, rel=0.05)
