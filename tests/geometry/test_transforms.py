"""Planted OV maps: what a head makes of a manifold, what writes it, and who reads that."""

import math

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head, Manifold
from circuitkeep.geometry.channels import channels
from circuitkeep.geometry.class_means import class_means
from circuitkeep.geometry.transforms import head_transforms, manifold_parts

from .conftest import LETTERS, batch_of


def test_a_planted_similarity_and_random_maps(planted):
    means = class_means(planted, batch_of(), [LETTERS])["letters"]
    heads = [Head(0, 0), Head(0, 1), Head(1, 0)]
    found = {one.head: one for one in head_transforms(planted, means, heads, draws=50)}
    copying = found[Head(0, 1)]
    assert copying.residual == pytest.approx(0, abs=1e-6)
    # The letters' curve stands twice in the stream, of which one is written, twice as large.
    assert copying.scale == pytest.approx(math.sqrt(2), rel=1e-6)
    assert copying.tilt == pytest.approx(math.pi / 2, abs=1e-5)
    assert copying.keeps_shape
    assert 0.05 < copying.random_limit < copying.random_mean < 0.9
    # L0H0 writes nothing: there is no shape.
    assert list(found) == [Head(0, 1), Head(1, 0)]
    other = found[Head(1, 0)]
    assert other.residual > 0.05
    assert other.random_mean == pytest.approx(other.residual, abs=0.3)


def test_parts_of_a_manifold_add_up(planted):
    after = Manifold("letters", "letter", 0, (0, 15))
    means = class_means(planted, batch_of(), [after])["letters"]
    parts = {part.name: part.share for part in manifold_parts(planted, means)}
    assert sum(parts.values()) == pytest.approx(1)
    assert parts["the rest"] == pytest.approx(0, abs=1e-9)
    assert parts["embedding"] + parts["L0H1"] == pytest.approx(1)
    assert parts["embedding"] > 0.5
    assert parts["MLP 0"] == parts["L0H0"] == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "gemma2"])
def test_parts_add_up_in_other_models(kind, tiny_model):
    backend = attach(tiny_model(kind))
    last = Manifold("letters", "letter", 1, (0, 15))
    means = class_means(backend, batch_of(), [last])["letters"]
    parts = manifold_parts(backend, means)
    assert len(parts) == 1 + 2 * 4 + 2 + 1
    # A norm between a head's output and the stream (Gemma) divides, which no part of it knows.
    rest = parts[-1].share
    assert (abs(rest) > 0.01) == (kind == "gemma2")


def test_a_planted_channel_is_the_strongest(planted):
    found = channels(planted, top=5, draws=50)
    assert found.pairs == 3 * 4 * 4
    best = found.strongest[0]
    assert (str(best.writer), str(best.reader), best.kind) == ("L0H1", "L1H2", "Q")
    assert best.composition > 2 * best.random
    assert best.z > 5
    # Six of the eight directions that a head has.
    assert best.overlap > 6 / 8 - 1e-6
    assert best.angle < 1e-6
    scores = [one.z for one in found.strongest]
    assert scores == sorted(scores, reverse=True)


def test_random_heads_overlap_as_random_subspaces_do(tiny_model):
    found = channels(attach(tiny_model("llama", num_key_value_heads=4)), draws=100)
    mean, limit = found.random_overlap
    assert mean == pytest.approx(8 / 32, abs=0.02)
    assert found.overlap == pytest.approx(mean, abs=0.05)
    assert limit > mean
    assert found.above < 0.15


def test_one_layer_has_no_channels(tiny_model):
    with pytest.raises(ValueError, match="has one layer"):
        channels(attach(tiny_model("llama", num_hidden_layers=1)))


def test_heads_that_write_nothing_are_no_channel(planted):
    torch.manual_seed(0)
    found = channels(planted, top=1000, draws=10)
    # L0H0, L0H2 and L0H3 write nothing: their figures are undefined, not large.
    assert {str(one.writer) for one in found.strongest} == {"L0H1"}
