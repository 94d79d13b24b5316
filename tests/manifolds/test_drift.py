"""Drift over prompts: planted transforms are found, with and without noise, and so is no drift."""

import math
from dataclasses import replace

import pytest
import torch

from circuitkeep.circuits import Manifold
from circuitkeep.functional.manifolds import TransformDrift, transform_drift
from circuitkeep.manifolds.drift import (
    FIGURES,
    drift_estimates,
    drift_of_halves,
    manifold_drift,
    moved_classes,
)
from circuitkeep.manifolds.rows import ManifoldRows

WIDE = torch.float64
CLASSES, WIDTH, KEPT = 24, 32, 4
MANIFOLD = Manifold("count", "position", 0, (0, CLASSES - 1), 1, KEPT)
STEPS = 2 * math.pi * torch.arange(CLASSES, dtype=WIDE) / CLASSES


def frame():
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=WIDE)).Q


def ring():
    parts = [f(c * STEPS) / (c + 1) * 2 for c in (1, 3) for f in (torch.cos, torch.sin)]
    return torch.stack(parts, 1) @ frame()[:, :4].T


def moved(rotation, scale, tilt, shape, shift):
    """The ring turned, tilted, of another shape, larger and elsewhere."""
    turn, over = torch.eye(WIDTH, dtype=WIDE), torch.eye(WIDTH, dtype=WIDE)
    for plane, first, angle in ((turn, 0, rotation), (over, 3, tilt)):
        plane[first, first] = plane[first + 1, first + 1] = math.cos(angle)
        plane[first, first + 1], plane[first + 1, first] = math.sin(angle), -math.sin(angle)
    own = frame()
    found = ring() @ own @ turn @ over @ own.T
    found = found + shape * torch.cos(2 * STEPS)[:, None] * own[:, 5]
    return scale * found + shift * own[:, 6]


PLANTED = {
    "none": ring(),
    "small": moved(0.1, 1.05, 0.1, 0.05, 0.05),
    "large": moved(0.4, 1.3, 0.4, 0.3, 0.3),
}


def rows_of(points, counts, noise=0.0):
    return ManifoldRows(MANIFOLD, points * counts[..., None] + noise, counts, 0.0)


def measured(points, prompts=64, noise=0.0, common=0.0, seed=0):
    """Base and now on prompts that have a class up to twice; noise, that is partly in both."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 3, (prompts, CLASSES), generator=generator)
    root = counts.double().sqrt()[..., None]

    def draws():
        return noise * root * torch.randn(*counts.shape, WIDTH, generator=generator, dtype=WIDE)

    first, second = draws(), draws()
    prompt = 0.5 * noise * torch.randn(prompts, 1, WIDTH, generator=generator, dtype=WIDE)
    first = first + prompt * counts[..., None]
    second = math.sqrt(1 - common**2) * second + common * first
    return rows_of(ring(), counts, first), rows_of(points, counts, second)


def drift_figures(base, now):
    found = transform_drift(base.means(), now.means(), KEPT)
    return {name: value.item() for name, value in found._asdict().items()}


def test_planted_without_noise():
    found = manifold_drift(*measured(PLANTED["large"]), draws=20)
    assert found.rotation.value == pytest.approx(0.4, abs=1e-5)
    assert found.tilt.value == pytest.approx(0.4, abs=1e-5)
    for name, true in transform_drift(ring(), PLANTED["large"], KEPT)._asdict().items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(true.item(), abs=1e-5)
        assert estimate.low == pytest.approx(true.item(), abs=1e-5)
        assert estimate.high == pytest.approx(true.item(), abs=1e-5)
    assert found.null.place.item() == pytest.approx(1)
    assert found.null.tilt.item() == pytest.approx(0, abs=1e-5)


def test_the_same_model_has_not_moved():
    base, _ = measured(ring(), noise=1.0)
    for name, found in drift_estimates(base, base, draws=20).items():
        kept = float(name in ("shape", "place"))
        ends = (found.low, found.value, found.high)
        assert ends == pytest.approx((kept, kept, kept), abs=1e-4), name


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_taken_off(seed):
    true = transform_drift(ring(), PLANTED["small"], KEPT)
    base, now = measured(PLANTED["small"], noise=0.3, seed=seed)
    raw, found = drift_figures(base, now), drift_estimates(base, now, draws=50)
    assert raw["place"] < true.place - 0.04
    assert abs(found["place"].value - true.place) < 0.03
    for name in FIGURES:
        estimate = found[name]
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.low - 0.02 <= getattr(true, name) <= estimate.high + 0.02, name


@pytest.mark.parametrize(("noise", "sure"), [(0.05, True), (2.0, False)])
def test_words_that_both_models_share_do_not_pass_for_a_shape(noise, sure):
    """Another manifold under the same words: if they are most of what is seen, it is not told."""
    other = torch.stack([f(c * STEPS) for c in (2, 5) for f in (torch.cos, torch.sin)], 1)
    base, now = measured(other @ frame()[:, 4:8].T, noise=noise, common=1.0)
    found = drift_estimates(base, now, draws=50)["shape"]
    assert found.low < 0.2
    assert (found.high < 0.2) == sure


def test_where_there_is_nothing_but_noise():
    base, now = measured(ring(), prompts=16, noise=6.0)
    found = drift_estimates(base, now, draws=50)
    assert math.isnan(found["place"].low)
    assert 0 <= found["shape"].low < 0.1
    assert 0 <= found["tilt"].low <= found["tilt"].high <= math.pi / 2


def test_more_prompts_narrow_the_interval():
    widths = []
    for prompts in (32, 512):
        found = drift_estimates(*measured(PLANTED["small"], prompts, 0.3), draws=50)
        widths.append(found["place"].high - found["place"].low)
    assert widths[1] < widths[0] / 2


def test_halves_differ_by_noise_alone():
    quiet, loud = (
        drift_of_halves(measured(ring(), noise=noise)[0], draws=50) for noise in (0.1, 0.5)
    )
    assert loud.place < quiet.place < 1
    assert loud.shape < quiet.shape < 1
    for name in ("translation", "log_scale", "rotation", "tilt"):
        assert getattr(loud, name) > getattr(quiet, name) > 0
    # Two sets of half as many prompts differ as much.
    true = drift_figures(measured(ring(), 32, 0.5, seed=1)[0], measured(ring(), 32, 0.5, seed=1)[1])
    assert loud.place - 0.2 < true["place"] < loud.place + 0.4


def test_a_class_that_only_one_half_has():
    base, _ = measured(ring(), prompts=4, noise=0.1)
    assert all(math.isfinite(figure) for figure in drift_of_halves(base, draws=30))
    with pytest.raises(ValueError, match=r"needs at least 2 prompts, .* got 1"):
        drift_of_halves(replace(base, sums=base.sums[:1], counts=base.counts[:1]))


@pytest.mark.parametrize("strict", [True, False])
def test_the_class_that_moved(strict):
    points = ring()
    points[7] += frame()[:, 9]
    base, now = measured(points)
    (value, distance), *others = moved_classes(base, now, strict)
    assert value == 7
    radius = (ring() - ring().mean(0)).square().sum(1).mean().sqrt().item()
    assert distance == pytest.approx(1 / radius, rel=0.01 if strict else 0.3)
    assert others[0][1] < 0.2


def test_a_turn_is_no_change_of_shape():
    base, now = measured(2 * ring() @ frame())
    assert moved_classes(base, now, strict=False)[0][1] == pytest.approx(0, abs=1e-6)
    assert moved_classes(base, now, strict=True)[0][1] > 0.5


def test_turning_the_space_changes_nothing_but_what_is_of_its_basis():
    base, now = measured(PLANTED["large"], noise=0.1)
    turned = replace(now, sums=now.sums @ frame())
    before, after = (drift_estimates(base, one, draws=20) for one in (now, turned))
    for name in ("shape", "log_scale"):
        for end in ("value", "low", "high"):
            same = getattr(after[name], end)
            assert same == pytest.approx(getattr(before[name], end), abs=1e-6)
    for name in ("place", "tilt"):
        assert abs(after[name].value - before[name].value) > 0.05


def test_other_prompts_are_refused():
    base, now = measured(ring())
    with pytest.raises(ValueError, match=r"measured on other prompts \(64 and 64\)"):
        drift_estimates(base, replace(now, counts=now.counts.flip(0)))


def test_too_many_dimensions():
    manifold = replace(MANIFOLD, dimensions=6)
    base, now = (replace(one, manifold=manifold) for one in measured(ring()))
    with pytest.raises(ValueError, match="dimensions=6: the points span 4"):
        drift_estimates(base, now)


@pytest.mark.slow
def test_intervals_cover_what_was_planted(capsys):
    """Coverage in 100 sets of prompts each; ``-s`` prints it.

    Noise of .3 is a fifteenth of the radius's square, of .6 a quarter. Shape is asked for no more
    than being near: noise that both models have in common counts as shape.
    """
    for planted, points in PLANTED.items():
        true = transform_drift(ring(), points, KEPT)
        for noise in (0.3, 0.6):
            for common in (0.0, 0.9):
                covered, beside = dict.fromkeys(FIGURES, 0), 0.0
                for seed in range(100):
                    found = drift_estimates(
                        *measured(points, 64, noise, common, seed), draws=100, seed=seed
                    )
                    for name, (low, high) in _ends(found).items():
                        true_value = getattr(true, name).item()
                        covered[name] += low - 1e-6 <= true_value <= high + 1e-6
                    low, high = _ends(found)["shape"]
                    beside = max(beside, low - true.shape.item(), true.shape.item() - high)
                with capsys.disabled():
                    print(f"\n{planted}, noise {noise}, common {common}: {covered}")
                    print(f"shape at most {beside:.3f} beside its interval", end="")
                assert min(covered[name] for name in FIGURES[1:]) >= 82
                assert beside < 0.03


def _ends(found):
    return {name: (one.low, one.high) for name, one in found.items()}


def test_every_figure_has_an_estimate():
    assert TransformDrift._fields == tuple(drift_estimates(*measured(ring()), draws=5))
