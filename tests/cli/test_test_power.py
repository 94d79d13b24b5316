"""``circuitkeep test-power``: tables in the terminal, JSON and Markdown."""

import json

import pytest

from circuitkeep.capture.models import save_model
from circuitkeep.circuits import dump_circuit

SETTINGS = ("reseeds=4", "directions=2", "runs=1", "losses=[0.2]", "calibration_rows=8")


@pytest.fixture
def folder(tmp_path, wired_model, wired_circuit):
    checks = "{rows: 8, seeds: [1, 2], score: {induction: 0.5}, causal: 0.01, no_migration: null}"
    text = dump_circuit(wired_circuit) + f"tests: {checks}\n"
    (tmp_path / "wired.circuit.yaml").write_text(text)
    save_model(wired_model, tmp_path / "wired")
    return tmp_path


def test_tables_are_printed_and_written(command, folder):
    code, stdout, _ = command(
        *("test-power", "circuits=wired.circuit.yaml", "model.path=wired", "output=power"),
        *SETTINGS,
    )
    assert code == 0
    (found,) = json.loads((folder / "power/test-power.json").read_text())
    assert found["circuit"] == "wired"
    assert found["rows"] == 16
    assert found["reseeds"] == 4
    assert found["false_alarms"]["retention[causal]"] == 0
    (level,) = found["levels"]["qk"]
    assert level["lost"] == pytest.approx(0.2, abs=0.011)
    markdown = (folder / "power/test-power.md").read_text()
    for name in found["thresholds"]:
        assert f"| {name} |" in markdown
        assert name in stdout
    assert "fails at -20%, QK" in stdout
    assert "power/test-power.md" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("circuits=wired.circuit.yaml",), "model.path is not set"),
        (("circuits=nowhere", "model.path=wired"), "nowhere"),
        (
            ("circuits=wired.circuit.yaml", "model.path=wired", "reseeds=3", "directions=4"),
            "reseeds=3",
        ),
        (("circuits=wired.circuit.yaml", "model.path=wired", "losses=[0.2,0.1]"), "that grow"),
    ],
)
def test_mistakes(command, folder, arguments, message):
    code, _, stderr = command("test-power", *arguments)
    assert code == 2, stderr
    assert message in stderr
    assert len(stderr.splitlines()) == 1
