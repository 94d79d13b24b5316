"""Planted place cells are found, with their places and widths; other features are not."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from circuitkeep.functional.tuning import (
    covered,
    curve_agreement,
    place_cells,
    receptive_fields,
)

CLASSES = torch.arange(60)


def bump(centre, width):
    return (-0.5 * ((CLASSES - centre) / width) ** 2).exp()


def test_by_hand():
    curves = torch.tensor([[0.0, 1, 4, 3, 1, 0], [4, 1, 0, 0, 1, 4], [2, 2, 2, 2, 2, 2]])
    found = receptive_fields(curves)
    assert found.preferred.tolist()[:2] == [2, 0]
    assert (found.first.tolist(), found.last.tolist()) == ([2, 0, 0], [3, 0, 5])
    assert found.width.tolist() == [2, 1, 6]
    assert found.single.tolist() == [True, False, True]
    assert found.clear.tolist() == [True, False, False]


def test_a_bump_is_as_wide_as_at_half_its_height():
    found = receptive_fields(bump(30, 5.0)[None] - 0.2)
    assert int(found.preferred) == 30
    assert int(found.width) == 2 * math.floor(5 * math.sqrt(2 * math.log(2))) + 1


def test_cells_that_widen_are_found_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    centres = [6, 12, 20, 31, 46]
    cells = torch.stack([bump(c, 1 + c / 12) for c in centres])
    others = torch.stack(
        [
            bump(10, 2) + bump(50, 2),  # two bumps
            CLASSES / 59,  # a slope
            torch.zeros(60),  # never active
            torch.zeros(60),  # noise alone
        ]
    )
    curves = torch.cat([cells, others])
    halves = [curves + 0.02 * torch.randn(curves.shape, generator=generator) for _ in range(2)]
    # A slope's upper half is half of the range.
    fields, chosen = place_cells(*halves, widest=0.4)
    assert chosen.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (fields.preferred[chosen] - torch.tensor(centres)).abs().max() <= 1
    preferred, widths = (v[chosen].double() for v in (fields.preferred, fields.width))
    assert spearmanr(preferred, widths).statistic > 0.85
    # 3, 5, 7, 9 and 11 of 60 classes by hand, give or take the noise.
    assert covered(fields, chosen, 60) == pytest.approx(35 / 60, abs=0.05)
    assert covered(fields, torch.zeros(9, dtype=torch.bool), 60) == 0
    assert curve_agreement(*halves)[-1] < 0.5
