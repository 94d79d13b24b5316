"""The check of geometry: a manifold that kept its shape passes, one that lost it fails."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from circuitkeep.capture.models import save_model
from circuitkeep.checks import Examination, Verdict, assert_circuit, load_plan
from circuitkeep.checks.explain import explain
from circuitkeep.checks.geometry import read_geometry_tests
from circuitkeep.checks.pin import pinned_plan
from circuitkeep.circuits import Circuit, CircuitError, Head, Manifold, Role, save_circuit
from circuitkeep.functional.manifolds import transform_drift
from circuitkeep.nightly.suite import measure

PLACES = Manifold("places", "position", 0, (1, 12), 1, 3)
CIRCUIT = Circuit(
    "repeats",
    (Role("induction", (Head(1, 2),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 14, "segment": [4, 5]},
    "accuracy",
    "made up",
    manifolds=(PLACES,),
)


def plain(model):
    """A model whose norms have no gain."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    return model


def turned(model):
    """The same function in another basis of the stream."""
    model = copy.deepcopy(model)
    width = model.config.hidden_size
    draws = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double()
    turn = torch.linalg.qr(draws).Q.float()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
        model.lm_head.weight.copy_(model.lm_head.weight @ turn)
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            reading = (attention.q_proj, attention.k_proj, attention.v_proj)
            for module in (*reading, mlp.gate_proj, mlp.up_proj):
                module.weight.copy_(module.weight @ turn)
            for module in (attention.o_proj, mlp.down_proj):
                module.weight.copy_(turn.T @ module.weight)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("models")
    save_model(tiny_model("gpt2"), folder / "base")
    save_model(tiny_model("gpt2", seed=1), folder / "other")
    llama = plain(tiny_model("llama"))
    save_model(llama, folder / "llama")
    save_model(turned(llama), folder / "turned")
    return folder


@pytest.fixture
def folder(models, tmp_path):
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    return tmp_path


def write(folder, geometry, **changes):
    # Nothing but geometry: what else a made up circuit does is of no interest.
    off = dict.fromkeys(("causal", "retention", "no_migration"))
    tests = {"rows": 24, "seeds": [1, 2], "geometry": geometry, **off}
    path = folder / "a.circuit.yaml"
    save_circuit(replace(CIRCUIT, tests=tests, **changes), path)
    return path


def judged(folder, model, geometry, base="base"):
    plan = load_plan(write(folder, geometry), True)
    examination = Examination([plan], folder / model, folder / base)
    checks = [check for check in plan.checks if check.kind == "geometry"]
    return {check.name: examination.judge(plan, check) for check in checks}, examination, plan


def test_the_same_model_passes(folder):
    found, *_ = judged(folder, "base", {"places": {"shape": 0.99, "place": 0.99}})
    assert list(found) == ["geometry[places]", "geometry[places.place]"]
    for outcome in found.values():
        assert outcome.verdict == Verdict.PASSED
        assert outcome.value == pytest.approx(1, abs=1e-5)
        assert outcome.rows == 48


def test_turning_the_stream_keeps_the_shape_and_not_the_place(folder):
    found, examination, plan = judged(
        folder, "turned", {"places": {"shape": 0.99, "place": 0.9}}, "llama"
    )
    shape, place = found.values()
    assert shape.verdict == Verdict.PASSED
    assert shape.value == pytest.approx(1, abs=1e-4)
    assert place.verdict == Verdict.FAILED
    assert "in the stream's own basis" in place.unit
    assert "own basis" not in shape.unit
    base, now = (
        evidence.manifolds["places"]
        for evidence in (examination.base_evidence(plan), examination.evidence(plan))
    )
    drift = transform_drift(base.means(), now.means(), PLACES.dimensions)
    assert drift.shape.item() == pytest.approx(1, abs=1e-4)
    assert drift.log_scale.item() == pytest.approx(0, abs=1e-4)
    assert drift.tilt.item() > 0.1


def test_another_model_fails_and_is_told_where(folder):
    found, examination, plan = judged(folder, "other", {"places": 0.9})
    outcome = found["geometry[places]"]
    assert outcome.verdict == Verdict.FAILED
    assert outcome.low <= outcome.value <= outcome.high < 0.9
    check = next(check for check in plan.checks if check.kind == "geometry")
    said = explain(plan, check, outcome, examination).plain
    assert "asked for at least 0.90: repeats geometry[places] failed" in said
    assert "position 1 (" in said
    assert "moved most, in units of the manifold's radius" in said
    assert "asked by `tests` in the circuit's file" in said


def test_an_assertion_and_no_base(folder):
    path = write(folder, {"places": 0.9})
    with pytest.raises(AssertionError, match=r"geometry\[places\] failed"):
        assert_circuit(folder / "other", path, folder / "base")
    plan = load_plan(path)
    assert "geometry" not in [check.kind for check in plan.checks]


def test_nothing_is_measured_without_being_asked_for(folder):
    for geometry in (None, {"places": None}, {"places": {"place": None}}):
        found, examination, plan = judged(folder, "base", geometry)
        assert found == {}
        assert examination.evidence(plan).manifolds == {}


def test_left_out_of_baselines(folder):
    plan = load_plan(write(folder, {"places": 0.9}), True)
    assert "geometry" in [check.kind for check in plan.checks]
    assert "geometry" not in [check.kind for check in pinned_plan(plan.circuit, True).checks]


def test_a_class_that_no_row_has(folder):
    manifold = replace(PLACES, values=(1, 30))
    path = write(folder, {"places": 0.9}, manifolds=(manifold,))
    plan = load_plan(path, True)
    examination = Examination([plan], folder / "base", folder / "base")
    check = next(check for check in plan.checks if check.kind == "geometry")
    with pytest.raises(CircuitError, match=r"position is never .* on these .* prompts"):
        examination.judge(plan, check)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (0.9, "'geometry' must map places to shares, got 0.9"),
        ({"place": 0.9}, "unknown key 'place'; did you mean 'places'"),
        ({"places": "much"}, "tests.geometry.places must be a share .* of the manifold's shape"),
        ({"places": True}, "must be a share"),
        ({"places": 0}, "must be a share"),
        ({"places": 1.5}, "must be a share"),
        ({"places": {"shap": 0.9}}, "tests.geometry.places: unknown key 'shap'; did you mean"),
        ({"places": {"place": 2}}, "tests.geometry.places.place must .* manifold's place .* got 2"),
    ],
)
def test_mistakes(geometry, message):
    with pytest.raises(CircuitError, match=message) as caught:
        read_geometry_tests(replace(CIRCUIT, tests={"geometry": geometry}))
    assert caught.value.keys[:2] == ("tests", "geometry")


def test_a_circuit_without_manifolds():
    bare = replace(CIRCUIT, manifolds=(), tests={"geometry": {"places": 0.9}})
    with pytest.raises(CircuitError, match="it has none; name them under the key 'manifolds'"):
        read_geometry_tests(bare)


def test_night_after_night(folder):
    plan = load_plan(write(folder, {"places": {"shape": 0.9, "place": 0.9}}), True)
    checkpoints = {name: str(folder / name) for name in ("base", "other")}
    found, events = measure([plan], checkpoints, str(folder / "base"))
    assert events == []
    verdicts = {(one.checkpoint, one.check): one.verdict for one in found}
    assert verdicts == {
        ("base", "geometry[places]"): "passed",
        ("base", "geometry[places.place]"): "passed",
        ("other", "geometry[places]"): "failed",
        ("other", "geometry[places.place]"): "failed",
    }
    assert all(one.error >= 0 for one in found)
