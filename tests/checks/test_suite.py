import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from circuitkeep.capture.models import save_model
from circuitkeep.checks import Examination, Verdict, circuit_files, load_plan, suite
from circuitkeep.circuits import Head, save_circuit


@pytest.fixture
def folder(tmp_path, wired_model, wired_circuit):
    """A model, one whose induction head does nothing, and a circuit file with its tests."""
    save_model(wired_model, tmp_path / "base")
    head = wired_circuit.roles[-1].heads[0]
    damaged = silenced(wired_model, head)
    save_model(damaged, tmp_path / "damaged")
    tests = {
        "rows": 64,
        "seeds": [1, 2],
        "score": {role.name: 0.9 for role in wired_circuit.roles},
        "behaviour": 0.8,
        "faithfulness": 0.5,
    }
    save_circuit(replace(wired_circuit, tests=tests), tmp_path / "wired.circuit.yaml")
    return tmp_path


def silenced(model, head):
    damaged = copy.deepcopy(model)
    size = model.config.head_dim
    queries = damaged.model.layers[head.layer].self_attn.q_proj.weight
    with torch.no_grad():
        queries[head.index * size : (head.index + 1) * size] = 0
    return damaged


def verdicts(folder, model, base=None):
    plan = load_plan(folder / "wired.circuit.yaml", base is not None)
    examination = Examination([plan], folder / model, base and folder / base)
    return {check.name: examination.judge(plan, check).verdict for check in plan.checks}


def test_a_model_that_has_its_circuit_passes(folder):
    found = verdicts(folder, "base", "base")
    assert set(found.values()) == {Verdict.PASSED}, found
    assert {"faithfulness", "no_migration", "retention[identity]"} <= set(found)


def test_a_model_that_lost_it_fails(folder, wired_circuit):
    found = verdicts(folder, "damaged", "base")
    role = wired_circuit.roles[-1].name
    for name in (f"score[{role}]", "behaviour", "retention[behaviour]", "no_migration"):
        assert found[name] == Verdict.FAILED, name
    first = wired_circuit.roles[0].name
    assert found[f"score[{first}]"] == Verdict.PASSED


def test_without_a_base_nothing_is_compared(folder):
    found = verdicts(folder, "base")
    assert not [name for name in found if name.startswith(("retention", "no_mig"))]


def test_each_model_is_loaded_once_and_one_is_held(folder, monkeypatch):
    loaded = []
    load = suite.load_checkpoint

    def counting(path, base):
        gc.collect()
        assert not [model for model, _ in loaded if model() is not None], "one at a time"
        model = load(path, base)
        loaded.append((weakref.ref(model), str(path)))
        return model

    monkeypatch.setattr(suite, "load_checkpoint", counting)
    verdicts(folder, "damaged", "base")
    assert [path.rsplit("/", 1)[1] for _, path in loaded] == ["base", "damaged"]


def test_baselines_give_thresholds(folder):
    path = folder / "wired.circuit.yaml"
    text = path.read_text()
    path.write_text(text.replace("  behaviour: 0.8\n", ""))
    assert "behaviour" not in [check.name for check in load_plan(path).checks]
    pinned = '{"value": 1, "low": 1, "high": 1, "seed_spread": 0, "null": 0, "threshold": 0.97,'
    pinned += ' "false_alarm": 0.01, "detects": 0.1}'
    settings = '"circuit": "wired", "model": "x", "rows": 1, "seeds": 1, "reseeds": 20'
    settings += ', "missed": 0.01, "tolerated": 0.1'
    text = f'{{{settings}, "checks": {{"behaviour": {pinned}}}}}'
    (folder / "wired.baseline.json").write_text(text)
    found = {check.name: check for check in load_plan(path).checks}
    assert (found["behaviour"].threshold, found["behaviour"].source) == (0.97, "baseline")
    (folder / "wired.baseline.json").write_text("{}")
    with pytest.raises(ValueError, match=r"wired\.baseline\.json is no baseline: .*'checks'"):
        load_plan(path)


def test_files_are_found(folder):
    (folder / "more").mkdir()
    (folder / "more" / "a.circuit.yaml").write_text("")
    (folder / "more" / "b.yaml").write_text("")
    found = [path.name for path in circuit_files([folder, folder / "more" / "b.yaml"])]
    assert found == ["a.circuit.yaml", "wired.circuit.yaml", "b.yaml"]
    with pytest.raises(FileNotFoundError, match="no circuit file at"):
        circuit_files([folder / "none.yaml"])
    with pytest.raises(FileNotFoundError, match=r"there is no \*\.circuit\.yaml in"):
        circuit_files([folder / "base"])


def test_two_of_one_name(folder):
    plan = load_plan(folder / "wired.circuit.yaml")
    with pytest.raises(ValueError, match="two circuits have the name"):
        Examination([plan, plan], folder / "base")


def test_what_does_not_fit_is_told_with_its_line(folder, wired_circuit):
    path = folder / "wired.circuit.yaml"
    text = path.read_text()
    path.write_text(text.replace("faithfulness", "faithfullness"))
    number = 1 + text.splitlines().index("  faithfulness: 0.5")
    with pytest.raises(ValueError, match=rf"wired\.circuit\.yaml:{number}: tests: unknown key"):
        load_plan(path)
    head = wired_circuit.roles[0].heads[0]
    path.write_text(text.replace(f"- {head}", f"- {Head(9, 9)}"))
    plan = load_plan(path)
    with pytest.raises(ValueError, match="head L9H9 is outside the model"):
        Examination([plan], folder / "base").judge(plan, plan.checks[0])
