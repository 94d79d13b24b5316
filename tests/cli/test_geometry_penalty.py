"""``circuitkeep train`` with penalties on geometry: composed, logged, resumed, refused."""

import csv

import pytest

pytestmark = [
    # Untrained models have no effect to keep, and say so in a warning.
    pytest.mark.filterwarnings("ignore:.*is not logged"),
]
MANIFOLDS = "manifolds: {place: {variable: position, layer: 0, values: [1, 31], dimensions: 3}}\n"


@pytest.fixture
def with_manifolds(circuit_file):
    path = circuit_file()
    path.write_text(path.read_text() + MANIFOLDS)
    return f"circuit.path='{path}'"


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def logged(folder, name):
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("penalty", "term"),
    [
        ("geometry", "geometry"),
        ("geometry_place", "geometry"),
        ("recommended_geometry", "geometry"),
        ("ov_transform", "ov"),
    ],
)
def test_it_is_logged_and_begins_at_nothing(
    penalty, term, command, train, with_manifolds, tmp_path
):
    more = ("penalty.pool_rows=16", "penalty.rows_per_step=2")
    code, _, stderr = command(*train, f"penalty={penalty}", with_manifolds, *more)
    assert code == 0, stderr
    values = logged(tmp_path / "run", f"circuit/ind/penalty/{term}")
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[-1] > 0


def test_a_resumed_run_is_bit_identical(command, train, with_manifolds, tmp_path):
    arguments = (*train, "penalty=recommended_geometry", with_manifolds, "penalty.pool_rows=16")
    assert command(*arguments, "output=whole")[0] == 0
    assert command(*arguments, "trainer.max_steps=2")[0] == 0
    code, _, stderr = command(*arguments, "trainer.resume=run/checkpoints/last.ckpt")
    assert code == 0, stderr
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_circuit_without_manifolds_is_one_sentence(command, train):
    code, _, stderr = command(*train, "penalty=geometry")
    assert code != 0
    assert "holds manifolds, and circuit 'ind' names none: add them to its file" in stderr
    assert "Traceback" not in stderr
