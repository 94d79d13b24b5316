"""``circuitkeep baseline`` from the first file to the failing check."""

import json

import pytest
import torch

from circuitkeep.capture.models import save_model
from circuitkeep.checks.baseline import read_baseline
from circuitkeep.circuits import dump_circuit


@pytest.fixture
def folder(tmp_path, wired_model, wired_circuit):
    """A circuit file, its model, and the model with a head that no longer writes."""
    text = dump_circuit(wired_circuit) + "tests: {rows: 16, seeds: [1, 2]}\n"
    (tmp_path / "circuits").mkdir()
    (tmp_path / "circuits/wired.circuit.yaml").write_text(text)
    save_model(wired_model, tmp_path / "wired")
    with torch.no_grad():
        wired_model.model.layers[1].self_attn.o_proj.weight.zero_()
    save_model(wired_model, tmp_path / "broken")
    return tmp_path


def test_a_baseline_is_written_checked_and_updated(command, folder):
    def run(action, model, *more):
        given = ("circuits=circuits", f"model.path={model}", "reseeds=5", "twins=2")
        return command("baseline", action, *given, *more)

    code, stdout, _ = run("write", "wired")
    assert code == 0
    path = folder / "circuits/wired.baseline.json"
    first = read_baseline(path)
    assert {"causal", "behaviour", "score[induction]"} <= first.checks.keys()
    for text in ("causal", "enough", "circuits/wired.baseline.json", "Told by 5 draws"):
        assert text in stdout
    assert sorted(one.name for one in folder.iterdir()) == ["broken", "circuits", "wired"]

    code, _, stderr = run("write", "wired")
    assert code == 2
    assert "is there already; `circuitkeep baseline update` rewrites it" in stderr

    code, stdout, _ = run("check", "wired")
    assert code == 0
    assert "The weights are those that were pinned." in stdout
    assert "failed" not in stdout
    code, stdout, _ = run("check", "broken")
    assert code == 1
    assert "The weights are" not in stdout
    lines = {line.split()[0]: line for line in stdout.splitlines() if "(baseline)" in line}
    assert " failed " in lines["causal"]
    assert " failed " in lines["behaviour"]
    assert " passed " in lines["score[induction]"], "it attends as before"
    pinned = first.checks["causal"]
    assert f"{pinned.value:.3g} [{pinned.low:.3g}, {pinned.high:.3g}]" in lines["causal"]
    assert read_baseline(path) == first

    _, stdout, _ = run("update", "wired")
    assert "nothing has changed" in stdout
    assert read_baseline(path) == first
    _, stdout, _ = run("update", "broken", "tolerated=0.2", "loss=0.3")
    assert "the model: these are other weights" in stdout
    assert "causal: no longer pinned" in stdout
    assert "not pinned: causal: " in stdout
    assert "causal" not in read_baseline(path).checks
    content = json.loads(path.read_text())
    assert content["tolerated"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "`circuitkeep baseline write`, `check` or `update`? got ''"),
        (("wirte",), "got 'wirte'"),
        (("action=wirte", "circuits=circuits", "model.path=wired"), "there is no baseline wirte"),
        (("check", "circuits=circuits", "model.path=wired"), "has no baseline; `circuitkeep base"),
        (("update", "circuits=circuits", "model.path=wired"), "baseline write` makes one"),
        (("write", "circuits=circuits"), "model.path is not set"),
        (("write", "model.path=wired"), "circuits is not set"),
        (("write", "circuits=nowhere", "model.path=wired"), "nowhere"),
        (("write", "circuits=circuits", "model.path=nowhere"), "nowhere"),
        (("write", "circuits=circuits", "model.path=wired", "reseeds=1"), "at least 2"),
        (("write", "circuits=circuits", "model.path=wired", "missed=0"), "missed is a chance"),
        (("write", "circuits=circuits", "model.path=wired", "twins=many"), "twins must be an int"),
        (("write", "circuits=circuits", "model.path=wired", "loss=0.1"), "0.1 is tolerated"),
    ],
)
def test_mistakes(command, folder, arguments, message):
    code, _, stderr = command("baseline", *arguments)
    assert code == 2, stderr
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert not list(folder.rglob("*.json.*")) + list(folder.glob("circuits/*.json"))
