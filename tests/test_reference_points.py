"""The points of manifolds: of probe rows, in the reference, and through a pass."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import Sites, attach, probe_mode
from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.functional.procrustes import spread_and_frames
from circuitkeep.penalties import GeometryDrift
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_rows
from circuitkeep.reference import (
    Fingerprint,
    Question,
    capture_reference,
    guard_rows,
    load_reference,
    observe,
    observe_all,
)
from circuitkeep.reference.points import MOST_POINTS

from .geometry.test_heads import rotated

PRINT = Fingerprint("", "", "", "", "manifolds")
MANIFOLDS = (
    Manifold("place", "position", 0, (1, 9), step=2, dimensions=2),
    Manifold("start", "position", -1, (0, 30)),
    Manifold("drawn", "drawn", 1, (3, 22)),
)
CIRCUIT = Circuit(
    "test",
    (Role("induction", (Head(1, 2), Head(0, 1))),),
    {"_target_": "circuitkeep.probes.RepeatedTokens"},
    "accuracy",
    "made up",
    manifolds=MANIFOLDS,
)
PROBE = RepeatedTokens(length=12, segment=(3, 5), prefix=(0, 3))
NEEDS = frozenset({"manifolds"})


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


@pytest.fixture
def batch(backend):
    """Forty rows with a variable that jumps about; the last row ends early."""
    place = replace(CIRCUIT, manifolds=MANIFOLDS[:2])
    batch = probe_rows(place, backend, None, "train", 40, 0, PROBE)
    drawn = torch.randint(-1, 26, batch.tokens.shape, generator=torch.Generator().manual_seed(3))
    mask = batch.mask.clone()
    mask[-1, 8:] = False
    return replace(batch, mask=mask, variables={**batch.variables, "drawn": drawn})


def test_points_by_a_naive_loop(backend, batch):
    reference = capture_reference(backend, CIRCUIT, batch, NEEDS, False, PRINT)
    sites = Sites(resid=(-1, 0, 1))
    with torch.no_grad(), probe_mode(backend.model), backend.capture(sites) as captured:
        backend.forward(batch.tokens)
    points, mask = reference.activations.points, reference.rows.labels.point_mask
    assert points.shape == (40, 3, MOST_POINTS, backend.model.config.hidden_size)
    # Twenty values make sixteen points: some of one value, some of two.
    for number, manifold in enumerate(MANIFOLDS):
        joined = min(MOST_POINTS, manifold.classes)
        for row in (0, 7, 39):
            members = {}
            for position in range(batch.tokens.shape[1]):
                value = int(batch.variables[manifold.variable][row, position])
                if not batch.mask[row, position] or not (
                    manifold.values[0] <= value <= manifold.values[1]
                ):
                    continue
                own = (value - manifold.values[0]) // manifold.step
                members.setdefault(own * joined // manifold.classes, []).append(position)
            assert set(members) == set(mask[row, number].nonzero()[:, 0].tolist())
            for point, positions in members.items():
                expected = captured.resids[manifold.layer][row, positions].mean(0)
                assert_close(points[row, number, point], expected)
            assert not points[row, number][~mask[row, number]].any()
    spread, frames = spread_and_frames(points, mask, torch.tensor([2, 6, 6]))
    assert_close(reference.activations.spread, spread)
    assert_close(reference.activations.frames, frames)


@pytest.mark.parametrize("kind", ["shape", "rigid", "place"])
def test_a_reference_is_saved_and_read_and_the_base_has_no_drift(kind, backend, batch, tmp_path):
    made = capture_reference(backend, CIRCUIT, batch, NEEDS, False, PRINT)
    made.save(tmp_path / "reference.safetensors")
    loaded = load_reference(tmp_path / "reference.safetensors", PRINT)
    assert torch.equal(loaded.rows.stretches, made.rows.stretches)
    for name in ("points", "spread", "frames"):
        assert torch.equal(getattr(loaded.activations, name), getattr(made.activations, name))
    rows, before = loaded.select(torch.tensor([39, 4, 11]), backend.device)
    with probe_mode(backend.model):
        now, logits = observe(backend, rows, CIRCUIT, NEEDS)
    assert logits is None
    assert_close(now.points, before.points)
    assert GeometryDrift(kind)(now, before, rows.labels).item() == pytest.approx(0, abs=1e-10)


def test_the_pass_ends_behind_the_last_manifold(backend, batch):
    low = replace(CIRCUIT, manifolds=MANIFOLDS[:2])
    rows = guard_rows(batch, low, False, manifolds=True)
    ran = []
    for layer in backend.layers:
        layer.register_forward_hook(lambda module, *_: ran.append(module))
    observe(backend, rows, low, NEEDS)
    assert backend.layers[1] not in ran


def test_circuits_of_other_lengths_share_a_pass(backend, batch):
    other = replace(CIRCUIT, name="other", manifolds=MANIFOLDS[:1])
    probe = RepeatedTokens(length=9, segment=(3, 4), prefix=(0, 1))
    shorter = probe_rows(other, backend, None, "train", 3, 1, probe)
    asked = [
        Question(guard_rows(batch, CIRCUIT, False, manifolds=True), CIRCUIT, NEEDS),
        Question(guard_rows(shorter, other, False, manifolds=True), other, NEEDS | {"pattern"}),
    ]
    together, _ = observe_all(backend, asked)
    for question, now in zip(asked, together, strict=True):
        alone, _ = observe(backend, question.rows, question.circuit, question.needs)
        assert_close(now.points, alone.points)


def test_turning_the_stream_has_no_shape_but_a_place(tiny_model, batch):
    model = tiny_model("llama").double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    made = capture_reference(attach(model), CIRCUIT, batch, NEEDS, False, PRINT)
    turned = attach(rotated(model))
    rows, before = made.select(torch.arange(40), turned.device)
    with probe_mode(turned.model):
        now, _ = observe(turned, rows, CIRCUIT, NEEDS)
    found = {
        kind: GeometryDrift(kind)(now, before, rows.labels).item()
        for kind in ("shape", "rigid", "place")
    }
    assert found["shape"] < 1e-6
    assert found["rigid"] < 1e-6
    assert found["place"] > 0.5


def test_what_cannot_be_held_is_refused(backend, batch):
    with pytest.raises(ValueError, match="circuit 'test' names none: add them to its file"):
        guard_rows(batch, replace(CIRCUIT, manifolds=()), False, manifolds=True)
    never = replace(CIRCUIT, manifolds=(Manifold("late", "position", 0, (11, 90)),))
    with pytest.raises(ValueError, match="manifold 'late': position takes 1 stretches"):
        guard_rows(batch, never, False, manifolds=True)
