"""Patching a subspace moves what lies in it, where it is told to, and nothing else."""

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.circuits import Manifold
from circuitkeep.manifolds import ManifoldRows, Subspace, shifted
from circuitkeep.probes import NO_VALUE

MANIFOLD = Manifold("count", "position", 0, (0, 7), dimensions=3)


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


@pytest.fixture
def rows(backend):
    width = backend.model.config.hidden_size
    sums = torch.randn(5, 8, width, generator=torch.Generator().manual_seed(0)).double()
    return ManifoldRows(MANIFOLD, sums, torch.ones(5, 8, dtype=torch.long), 1.0)


def streams(backend, tokens, edits):
    with torch.no_grad(), backend.edit(edits), backend.capture(Sites(resid=(0,))) as captured:
        backend.forward(tokens)
    return captured.resids[0]


@pytest.mark.parametrize("kind", ["own", "random"])
def test_patched_positions_get_the_coordinates_of_the_class(backend, rows, tokens, kind):
    subspace = Subspace.of(rows) if kind == "own" else Subspace.random(rows, 0)
    frame = subspace.frame
    torch.testing.assert_close(frame.T @ frame, torch.eye(3), atol=1e-5, rtol=0)
    with torch.no_grad(), backend.capture(Sites(resid=(0,))) as captured:
        backend.forward(tokens)
    plain = captured.resids[0]
    classes = torch.full_like(tokens, NO_VALUE)
    classes[0, 3], classes[1, 5] = 6, 0
    found = streams(backend, tokens, subspace.patched(classes))
    for row, position, number in ((0, 3, 6), (1, 5, 0)):
        moved = found[row, position]
        expected = rows.means()[number].float() @ frame
        torch.testing.assert_close(moved @ frame, expected, atol=1e-5, rtol=1e-5)
        # What is orthogonal to the subspace stays.
        change = moved - plain[row, position]
        torch.testing.assert_close(change, frame @ (frame.T @ change), atol=1e-5, rtol=1e-5)
    others = classes == NO_VALUE
    assert torch.equal(found[others], plain[others])


def test_ablated_positions_are_all_alike_within_the_subspace(backend, rows, tokens):
    subspace = Subspace.of(rows)
    here = torch.zeros_like(tokens, dtype=torch.bool)
    here[:, 2:] = True
    found = streams(backend, tokens, subspace.ablated(here))
    centre = subspace.points.mean(0)
    inside = found @ subspace.frame
    torch.testing.assert_close(inside[here], centre.expand_as(inside[here]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(inside[~here], centre, atol=1e-3)


def test_shifted():
    classes = torch.tensor([[NO_VALUE, 0, 3, 7]])
    assert shifted(MANIFOLD, classes, 1).tolist() == [[-1, 1, 4, -1]]
    assert shifted(MANIFOLD, classes, -1).tolist() == [[-1, -1, 2, 6]]


def test_a_class_outside_is_refused(rows):
    with pytest.raises(ValueError, match="class 8 is outside the manifold, which has 8"):
        Subspace.of(rows).patched(torch.tensor([[8]]))
