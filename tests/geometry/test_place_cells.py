"""A transcoder's features that are planted place cells are found, value by value."""

import math

import pytest
import torch

from circuitkeep.circuits import CircuitError, Manifold
from circuitkeep.geometry.place_cells import _widening, tiling
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig

from .conftest import LETTERS, VALUES, batch_of, curve


@pytest.fixture
def transcoder(planted):
    """Features 0 to 7 of layer 0 stand for letters 1, 3 ... 15, the others for nothing."""
    config = TranscoderConfig(n_layers=2, d_model=32, n_features=20, reads="stream")
    made = CrossLayerTranscoder(config)
    with torch.no_grad():
        made.W_enc.zero_()
        made.W_enc[0, :8, :6] = curve(torch.arange(1, VALUES, 2).double()).float()
        made.threshold.fill_(1.0)
        made.W_enc[0, 8] = 1.0
        made.b_enc[0, 8] = 5.0  # always active
    return made


def test_planted_cells(planted, transcoder):
    found = tiling(planted, transcoder, batch_of(), LETTERS)
    assert (found.layer, found.features) == (0, 20)
    assert found.cells == tuple(range(8))
    assert found.preferred == tuple(range(1, VALUES, 2))
    assert found.active == 9
    assert found.covered == pytest.approx(1)
    assert all(2 <= width <= 7 for width in found.widths)


def test_widening_by_hand():
    # Ranks 0, 1.5, 1.5, 3 beside 3, 2, 1, 0.
    found = _widening(torch.tensor([1.0, 2, 2, 3]), torch.tensor([9.0, 7, 5, 3]))
    assert found == pytest.approx(-4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(_widening(torch.ones(2), torch.arange(2.0)))
    assert math.isnan(_widening(torch.arange(4.0), torch.ones(4)))


def test_what_does_not_fit_is_refused(planted, transcoder):
    with pytest.raises(CircuitError, match="do not know 'colour'"):
        tiling(planted, transcoder, batch_of(), Manifold("m", "colour", 0, (0, 9)))
    many = Manifold("m", "letter", 0, (0, 40))
    with pytest.raises(ValueError, match=r"letter is never \d+ in one half"):
        tiling(planted, transcoder, batch_of(), many)
    other = CrossLayerTranscoder(TranscoderConfig(n_layers=3, d_model=32, n_features=4))
    with pytest.raises(ValueError, match="layers"):
        tiling(planted, other, batch_of(), LETTERS)
