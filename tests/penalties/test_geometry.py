"""Geometry penalties on points that were moved in known ways."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.manifolds import fit_similarity
from circuitkeep.functional.procrustes import spread_and_frames
from circuitkeep.penalties import Activations, GeometryDrift, Labels, Sum

ROWS, MANIFOLDS, POINTS, D = 5, 2, 8, 10
KINDS = ["shape", "rigid", "place"]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels(rows=slice(None)):
    """Every point in most rows; few in row 1, and none of the second manifold in row 2."""
    present = torch.ones(ROWS, MANIFOLDS, POINTS, dtype=torch.bool)
    present[0, :, 5:] = present[1, 0, 2:] = present[2, 1] = False
    mask = torch.ones(ROWS, 1, dtype=torch.bool)[rows]
    answers = torch.zeros(0, dtype=torch.long)
    return Labels(mask, mask[:, None], mask[:, None, None], answers, present[rows])


def curves():
    """A curve per row and manifold, with what the words of a row put there."""
    values = torch.linspace(0, 3, POINTS, dtype=torch.float64)
    curve = torch.stack([values, values.sin(), (2 * values).cos()], 1) @ random(3, D, seed=1)
    return curve + 0.3 * random(ROWS, MANIFOLDS, POINTS, D, seed=2)


def kept(points):
    dimensions = torch.tensor([3, 5])
    spread, frames = spread_and_frames(points, labels().point_mask, dimensions)
    return Activations(points=points, spread=spread, frames=frames)


def value(kind, now, base, rows=slice(None)):
    reference = replace(kept(base), points=base[rows])
    return GeometryDrift(kind)(Activations(points=now[rows]), reference, labels(rows))


def turned(points, seed=5):
    return points @ torch.linalg.qr(random(D, D, seed=seed)).Q


@pytest.mark.parametrize("kind", KINDS)
def test_zero_with_zero_gradient_at_the_reference(kind):
    now = curves().requires_grad_()
    found = value(kind, now, curves())
    found.backward()
    assert found.shape == ()
    assert_close(found.item(), 0.0, rtol=0, atol=1e-15)
    assert now.grad.abs().max() < 1e-14


def test_each_kind_lets_its_own_motions_pass():
    base = curves()
    shift = random(D, seed=6)
    moved = {
        "nothing": base,
        "rotation": turned(base),
        "translation": base + shift,
        "scale": 0.5 * base,
        "all three": 2 * turned(base) + shift,
    }
    passes = {
        "shape": {"nothing", "rotation", "translation", "scale", "all three"},
        "rigid": {"nothing", "rotation", "translation"},
        "place": {"nothing"},
    }
    for kind in KINDS:
        for name, now in moved.items():
            found = value(kind, now, base).item()
            assert (found < 1e-12) == (name in passes[kind]), (kind, name, found)


def test_place_is_the_distance_in_units_of_the_spread():
    base, shift = curves(), random(D, seed=6)
    reference = kept(base)
    # In 5 rows each; row 2 has nothing of the second manifold.
    within = (shift @ reference.frames).square().sum(-1)
    expected = within / reference.spread * torch.tensor([1.0, 0.8])
    assert_close(value("place", base + shift, base), expected.mean())
    # What leaves the first manifold's subspace is not seen.
    away = base.clone()
    away[:, 0] += shift - reference.frames[0] @ (reference.frames[0].mT @ shift)
    assert value("place", away, base).item() == pytest.approx(0, abs=1e-12)


def test_rigid_is_the_change_of_size():
    base = curves()
    present = labels().point_mask[..., None]
    counts = present.sum(2, keepdim=True).clamp(min=1)
    centred = (base - (base * present).sum(2, keepdim=True) / counts) * present
    within = centred.square().sum(-1).sum(-1) / counts[..., 0, 0]
    expected = 0.25 * (within / kept(base).spread).mean()
    assert_close(value("rigid", 1.5 * turned(base), base), expected)


def test_shape_of_a_bend_is_what_the_fit_leaves():
    base = curves()
    bent = base + torch.linspace(-1, 1, POINTS, dtype=torch.float64)[:, None] ** 2 * random(D)
    present, unit = labels().point_mask, kept(base).spread
    total = 0.0
    for row in range(ROWS):
        for manifold in range(MANIFOLDS):
            there = present[row, manifold]
            if there.sum() < 2:
                continue
            x, y = base[row, manifold, there], bent[row, manifold, there]
            size = (x - x.mean(0)).square().sum(1).mean()
            total += fit_similarity(y, x).residual * size / unit[manifold]
    found = value("shape", 3 * turned(bent), base)
    assert_close(found, total / (ROWS * MANIFOLDS))
    assert found > 0.001


def test_a_stricter_kind_is_never_below():
    for seed in range(5):
        now = torch.lerp(curves(), random(ROWS, MANIFOLDS, POINTS, D, seed=seed), 0.5)
        shape, rigid = (value(kind, now, curves()).item() for kind in KINDS[:2])
        assert 0 < shape < rigid


@pytest.mark.parametrize("kind", KINDS)
def test_it_rises_with_the_damage(kind):
    base, other = curves(), random(ROWS, MANIFOLDS, POINTS, D, seed=8)
    found = [value(kind, torch.lerp(base, other, part), base).item() for part in (0, 0.2, 0.5, 0.9)]
    assert found == sorted(found)
    assert found[-1] > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    now = torch.lerp(curves(), random(ROWS, MANIFOLDS, POINTS, D, seed=8), 0.3).requires_grad_()
    base, rows = curves(), slice(0, 2)
    assert torch.autograd.gradcheck(lambda points: value(kind, points, base, rows), now)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(2, 3), (1, 4), (3, 1, 1), (0, 5)])
def test_the_whole_is_the_share_weighted_mean_of_uneven_parts(kind, sizes):
    base = curves()
    now = base + 0.2 * random(ROWS, MANIFOLDS, POINTS, D, seed=8)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        size / ROWS * value(kind, now, base, slice(start, start + size))
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert_close(sum(parts), value(kind, now, base))


@pytest.mark.parametrize("kind", KINDS)
def test_points_that_fall_into_one_or_run_away_stay_finite(kind):
    for factor in (0.0, 1e15):
        now = (factor * curves()).float().requires_grad_()
        found = value(kind, now, curves().float())
        found.backward()
        assert found.isfinite()
        assert now.grad.isfinite().all()
    alike = value("shape", torch.ones(ROWS, MANIFOLDS, POINTS, D), curves())
    assert 0.5 < alike < 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_labelled_is_zero_with_zero_gradient(kind):
    now = random(ROWS, MANIFOLDS, POINTS, D, seed=8).requires_grad_()
    given = replace(labels(), point_mask=torch.zeros(ROWS, MANIFOLDS, POINTS, dtype=torch.bool))
    found = GeometryDrift(kind)(Activations(points=now), kept(curves()), given)
    found.backward()
    assert found == 0
    assert not now.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind):
    given = replace(labels(), point_mask=labels().point_mask.to("meta"))
    reference = kept(curves())
    values = {name: getattr(reference, name).to("meta") for name in ("points", "spread", "frames")}
    reference = Activations(**values)
    assert GeometryDrift(kind)(reference, reference, given).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_compared_in_float64(kind):
    now, base = (x.bfloat16() for x in (random(ROWS, MANIFOLDS, POINTS, D, seed=8), curves()))
    found = value(kind, now, base)
    assert found.dtype == torch.float32
    assert_close(found.double(), value(kind, now.double(), base.double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_gets_no_gradient(kind):
    base = curves().requires_grad_()
    value(kind, random(ROWS, MANIFOLDS, POINTS, D, seed=8).requires_grad_(), base).backward()
    assert base.grad is None


def test_a_variable_of_one_value_per_row_has_no_shape():
    given = labels()
    given.point_mask[:, 1] = False
    given.point_mask[:, 1, 2] = True
    GeometryDrift("place").check_pool(given)
    for kind, points in (("shape", 3), ("rigid", 2)):
        with pytest.raises(ValueError, match=f"manifold number 2 .* 1 points, of {points} that"):
            Sum({"geometry": GeometryDrift(kind)}).check_pool(given)
    GeometryDrift("shape").check_pool(labels())


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="kind='curve': choose one of 'shape', 'rigid', 'place'"):
        GeometryDrift("curve")
    with pytest.raises(ValueError, match="reference activations hold no 'points'"):
        GeometryDrift()(Activations(points=curves()), Activations(), labels())
    with pytest.raises(ValueError, match="same probe rows"):
        GeometryDrift()(Activations(points=curves()[:2]), kept(curves()), labels())
    assert Sum({"geometry": GeometryDrift()}).needs == {"manifolds"}
