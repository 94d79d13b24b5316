"""A planted twist of one variable onto another is found, with its offset, and nothing else."""

from dataclasses import replace

import pytest

from circuitkeep.circuits import Head
from circuitkeep.geometry.alignment import alignments
from circuitkeep.geometry.class_means import class_means

from .conftest import LETTERS, NUMBERS, SHIFT, batch_of

HEADS = [Head(0, index) for index in range(4)]


@pytest.fixture
def measured(planted):
    found, other = (
        class_means(planted, batch_of(seed=seed), [LETTERS, NUMBERS]) for seed in (0, 1)
    )

    def pair(name):
        return found[name], other[name]

    return planted, pair


def test_the_planted_head_is_found_with_its_offset(measured):
    backend, pair = measured
    found = alignments(backend, pair("letters"), pair("numbers"), HEADS, draws=100)
    best = found[0]
    assert str(best.head) == "L0H1"
    assert best.offset == SHIFT
    assert best.correlation > 0.85
    assert best.held_out == pytest.approx(best.correlation, abs=1e-6)  # tokens alone decide here
    assert best.is_boundary
    assert best.correlation > best.random_limit > best.random_mean
    assert best.shuffled_limit < 0.5
    assert best.stream < 0.7 * best.correlation
    correlations = [one.correlation for one in found]
    assert correlations == sorted(correlations, reverse=True)


def test_the_other_way_round_nothing_is_matched(measured):
    backend, pair = measured
    found = alignments(backend, pair("numbers"), pair("letters"), [Head(0, 1)], draws=20)[0]
    assert found.strength == pytest.approx(0, abs=1e-9)
    assert not found.is_boundary


def test_a_head_that_multiplies_the_values_is_no_boundary_head(measured):
    backend, pair = measured
    found = alignments(backend, pair("letters"), pair("numbers"), [Head(0, 1)], draws=20)[0]
    assert found.monotone < found.correlation
    assert not replace(found, monotone=0.99).is_boundary
    assert not replace(found, held_out=found.random_limit).is_boundary
