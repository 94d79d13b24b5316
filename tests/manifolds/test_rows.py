"""Sums by value and prompt are those of plain loops over the stream."""

from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.circuits import Circuit, CircuitError, Head, Manifold, Role
from circuitkeep.manifolds import manifold_rows, manifold_samples
from circuitkeep.probes import NO_VALUE
from circuitkeep.probing import probe_rows

EARLY = Manifold("early", "position", -1, (1, 12), step=2, dimensions=3)
LATE = Manifold("late", "phase", 1, (0, 4), dimensions=2)


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


def circuit(*manifolds):
    probe = {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 16, "segment": [4, 6]}
    roles = (Role("induction", (Head(1, 0),)),)
    return Circuit("x", roles, probe, "accuracy", "test", manifolds=manifolds)


@pytest.fixture
def batch(backend):
    found = probe_rows(circuit(EARLY), backend, None, "held_out", 40, 0)
    phase = (torch.arange(16) % 6).expand(40, 16).where(found.mask, NO_VALUE)
    return replace(found, variables={**found.variables, "phase": phase})


def by_hand(backend, batch, manifold):
    """Class -> row -> the vectors."""
    with torch.no_grad(), backend.capture(Sites(resid=(manifold.layer,))) as captured:
        backend.forward(batch.tokens)
    stream = captured.resids[manifold.layer]
    found = {}
    first, last = manifold.values
    for row in range(len(batch)):
        for position in range(batch.tokens.shape[1]):
            value = int(batch.variables[manifold.variable][row, position])
            if batch.mask[row, position] and first <= value <= last:
                number = (value - first) // manifold.step
                found.setdefault(number, {}).setdefault(row, []).append(stream[row, position])
    return found


@pytest.mark.parametrize("manifold", [EARLY, LATE], ids=["early", "late"])
def test_sums_and_means(backend, batch, manifold):
    rows = manifold_rows(backend, batch, [EARLY, LATE])[manifold.name]
    assert not rows.sums.requires_grad
    expected = by_hand(backend, batch, manifold)
    everything = [v for by_row in expected.values() for vs in by_row.values() for v in vs]
    assert rows.squares == pytest.approx(sum(v.square().sum().item() for v in everything), rel=1e-5)
    drawn = torch.tensor([3, 3, 7, 0])
    for number, by_row in expected.items():
        vectors = torch.stack([v for vs in by_row.values() for v in vs]).double()
        torch.testing.assert_close(rows.means()[number], vectors.mean(0), rtol=1e-5, atol=1e-6)
        again = torch.stack([v for row in drawn.tolist() for v in by_row[row]]).double()
        torch.testing.assert_close(rows.means(drawn)[number], again.mean(0), rtol=1e-5, atol=1e-6)
        assert rows.counts[7, number] == len(by_row[7])
    values = torch.stack(everything).double()
    between = sum(
        len(all_of) * (torch.stack(all_of).double().mean(0) - values.mean(0)).square().sum()
        for by_row in expected.values()
        for all_of in [[v for vs in by_row.values() for v in vs]]
    )
    whole = (values - values.mean(0)).square().sum()
    assert rows.explained == pytest.approx((between / whole).item(), rel=1e-4)


def test_samples(backend, batch):
    samples = manifold_samples(backend, batch, [LATE])["late"]
    expected = by_hand(backend, batch, LATE)
    assert len(samples.values) == sum(len(vs) for rows in expected.values() for vs in rows.values())
    for place in range(0, len(samples.labels), 37):
        label, row = int(samples.labels[place]), int(samples.row[place])
        position = int(samples.position[place])
        assert batch.variables["phase"][row, position] == label
        assert any(
            torch.allclose(samples.values[place], v, atol=1e-5) for v in expected[label][row]
        )


def test_a_class_without_samples_is_named(backend, batch):
    far = Manifold("far", "position", 0, (10, 30), dimensions=2)
    with pytest.raises(CircuitError, match="'far': position is never 16 on these 40 prompts") as it:
        manifold_rows(backend, batch, [far])
    assert it.value.keys == ("manifolds", "far", "values")


def test_an_unknown_variable_is_named(backend, batch):
    with pytest.raises(CircuitError, match="the rows do not know 'width'"):
        manifold_rows(backend, batch, [replace(EARLY, variable="width")])
    with pytest.raises(CircuitError, match="unknown variable 'positions'; did you mean 'position'"):
        probe_rows(circuit(replace(EARLY, variable="positions")), backend, None, "held_out", 4, 0)
    with pytest.raises(CircuitError, match="manifold 'early': the variable 'token-length' is told"):
        probe_rows(
            circuit(replace(EARLY, variable="token-length")), backend, None, "held_out", 4, 0
        )
