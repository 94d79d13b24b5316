"""Planted matches between two variables are found with their offset; chance is not."""

import math

import pytest
import torch

from circuitkeep.functional.alignment import (
    HeadSide,
    best_diagonal,
    cosine_matrix,
    double_centred,
    inner_factor,
    means_through,
    offsets_of,
    random_images,
    random_scores,
    shuffled_diagonals,
    turned_sums,
)

COUNTS = torch.arange(1, 41).double()
WIDTHS = torch.arange(10, 51).double()


def curve(values, period=64.0, shift=0.0):
    """A circle and its second and third harmonic: values near each other have a large product."""
    phase = 2 * math.pi * (values[:, None] + shift) / period * torch.arange(1, 4)
    return torch.cat([phase.cos(), phase.sin()], 1)


@pytest.mark.parametrize("offset", [0, 7, 13])
def test_a_planted_offset_is_found(offset):
    scores = curve(COUNTS, shift=offset) @ curve(WIDTHS).T
    # What all keys or all queries share changes nothing.
    scores = scores + torch.randn(40, 1).double() + torch.randn(1, 41).double()
    found = best_diagonal(scores, COUNTS, WIDTHS)
    assert float(found.offset) == pytest.approx(offset, abs=1)
    assert float(found.correlation) > 0.9
    assert float(best_diagonal(-scores, COUNTS, WIDTHS).correlation) < 0.6


def test_by_hand():
    values = torch.arange(4.0)
    scores = torch.diag(torch.ones(3), 1)
    found = best_diagonal(scores, values, values, width=1e-3)
    assert (float(found.correlation), float(found.offset)) == (pytest.approx(1), 1)
    known = best_diagonal(scores, values, values, width=1e-3, offsets=torch.zeros(1).double())
    # Double-centred: the two diagonals have no entry in common.
    one, other = (double_centred(m.double()) for m in (scores, torch.eye(4)))
    expected = float((one * other).sum() / one.norm() / other.norm())
    assert float(known.correlation) == pytest.approx(expected)
    assert expected < 0
    assert float(best_diagonal(torch.ones(4, 4), values, values).correlation) == 0


def test_offsets_leave_half_of_the_shorter_side():
    offsets = offsets_of(COUNTS, WIDTHS)
    assert (float(offsets[0]), float(offsets[-1])) == (-10, 29)
    for offset in (offsets[0], offsets[-1]):
        assert int(torch.isin(COUNTS + offset, WIDTHS).sum()) >= 20
    coarse = offsets_of(torch.arange(0.0, 40, 4), torch.arange(0.0, 40, 2))
    assert float(coarse.diff().max()) == 2


def test_cosines():
    x = torch.tensor([[1.0, 0], [0, 1], [-1, -1]])
    found = cosine_matrix(x, x + 5)
    assert torch.allclose(found.diagonal(), torch.ones(3))
    assert float(found[0, 1]) == pytest.approx(0)
    assert float(found[0, 2]) == pytest.approx(-math.sqrt(0.5))


def gram(points):
    centred = points - points.mean(0)
    return centred @ centred.T


def test_neither_shuffled_classes_nor_random_heads_reach_a_planted_match():
    scores = curve(COUNTS, shift=7) @ curve(WIDTHS).T
    own = float(best_diagonal(scores, COUNTS, WIDTHS).correlation)
    assert float(shuffled_diagonals(scores, COUNTS, WIDTHS).max()) < 0.5 * own
    head = HeadSide(torch.eye(6), None)
    drawn = random_scores((side(curve(COUNTS)), side(curve(WIDTHS))), (head, head), draws=60)
    null = best_diagonal(drawn, COUNTS, WIDTHS).correlation
    assert float(null.quantile(0.95)) < own
    # Smooth manifolds have diagonals by chance: this null is the harder one.
    assert float(null.median()) > float(shuffled_diagonals(scores, COUNTS, WIDTHS).median())


def side(points, d=32):
    """Points that are read as they are, in a larger space."""
    frame = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(2))).Q
    wide = points @ frame[: points.shape[1]].double()
    return turned_sums(wide[:, None], torch.ones(len(points), 1, dtype=torch.long), EYE)


EYE = torch.eye(6)[None]


def planted_samples(d=8, r=4, places=5, classes=3):
    """Samples of some classes at some places, and how each place is turned."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, d, generator=generator).double()
    labels, place = (torch.randint(n, (60,), generator=generator) for n in (classes, places))
    turns = torch.zeros(places, r, r).double()
    for p in range(places):
        for plane, speed in enumerate((1.0, 0.3)):
            c, s = math.cos(speed * p), math.sin(speed * p)
            at = 2 * plane
            turns[p, at : at + 2, at : at + 2] = torch.tensor([[c, s], [-s, c]])
    sums = torch.zeros(classes, places, d).double()
    sums = sums.index_put((labels, place), values, accumulate=True)
    counts = torch.zeros(classes, places, dtype=torch.long)
    counts = counts.index_put((labels, place), torch.ones(60, dtype=torch.long), accumulate=True)
    return values, labels, place, turns, sums, counts


def test_means_through_a_head_are_those_of_its_turned_queries():
    values, labels, place, turns, sums, counts = planted_samples()
    generator = torch.Generator().manual_seed(1)
    matrix, bias = torch.randn(8, 4, generator=generator).double(), torch.ones(4).double()
    queries = torch.einsum("nr,nrs->ns", values @ matrix + bias, turns[place])
    expected = torch.stack([queries[labels == label].mean(0) for label in range(3)])
    turned = turned_sums(sums, counts, turns)
    assert len(turned.rows) == 8
    # The head's own directions along the axes that the sums are given in.
    axes = torch.linalg.lstsq(sums.flatten(0, 1), _coordinates(sums)).solution
    inner = inner_factor(matrix)
    frame = axes.T @ matrix @ torch.linalg.inv(inner)
    assert torch.allclose(frame.T @ frame, torch.eye(4).double(), atol=1e-6)
    found = means_through(turned, frame, HeadSide(inner, bias))
    assert torch.allclose(found, expected, atol=1e-6)


def _coordinates(sums):
    """Those of `turned_sums`, read off it with a turn that changes nothing."""
    places = sums.shape[1]
    found = [
        turned_sums(sums, torch.ones(3, places, dtype=torch.long), own[:, None, None]).sums
        for own in torch.eye(places)
    ]
    return torch.stack([one[..., 0] for one in found], 1).flatten(0, 1)


def test_random_heads_do_not_depend_on_the_basis():
    _, _, _, turns, sums, counts = planted_samples()
    drawn = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()
    turn = torch.linalg.qr(drawn).Q
    matrix = drawn[:, :4]
    one, other = (
        random_scores(
            (turned_sums(s, counts, turns),) * 2,
            (HeadSide(inner_factor(m), torch.ones(4)),) * 2,
            draws=3,
            seed=4,
        )
        for s, m in ((sums, matrix), (sums @ turn, turn.T @ matrix))
    )
    assert torch.allclose(one, other, atol=1e-6)
    assert inner_factor(matrix).diagonal().min() > 0
    assert torch.allclose(inner_factor(matrix).T @ inner_factor(matrix), matrix.T @ matrix)


def test_random_heads_keep_the_singular_values():
    # As many points as there are dimensions, so that a map can be read off its scores.
    points = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    read = turned_sums(points[:, None], torch.ones(8, 1, dtype=torch.long), torch.eye(3)[None])
    query, key = torch.diag(torch.tensor([3.0, 2.0, 1.0])).double(), torch.eye(3).double()
    heads = HeadSide(query, None), HeadSide(key, None)
    scores = random_scores((read, read), heads, draws=2)
    inverse = torch.linalg.inv(points @ points.T)
    for each in scores:
        # The squares of the map's singular values, in a basis that is not orthonormal.
        found = torch.linalg.eigvals(inverse @ each @ inverse @ each.T).real.sort().values
        assert found[-3:].tolist() == pytest.approx([1, 4, 9], rel=1e-6)
        assert float(found[:-3].abs().max()) < 1e-6


def test_random_maps_keep_the_points_inner_products_if_they_stretch_nothing():
    points = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    own, images = random_images(gram(points), torch.ones(8), 8, draws=2)
    assert torch.allclose(own @ own.T, gram(points), atol=1e-9)
    assert torch.allclose(images @ images.mT, gram(points).expand(2, 5, 5), atol=1e-9)
    _, thin = random_images(gram(points), torch.tensor([2.0]), 8, draws=1)
    assert int(torch.linalg.matrix_rank(thin[0], rtol=1e-6)) == 1
