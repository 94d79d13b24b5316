"""Manifolds in circuit files: read, written, and every mistake told with its line."""

import pytest

from circuitkeep.circuits import CircuitError, Manifold, dump_circuit, load_circuit

TEXT = """\
name: lines
source: ours
roles:
  newline: [L0H1]
probe:
  _target_: circuitkeep.probes.RepeatedTokens
behaviour: accuracy
manifolds:
  count:
    variable: position
    layer: 1
    values: [5, 24]
    step: 2
    dimensions: 3
  place: {variable: position, layer: -1, values: [1, 9]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.circuit.yaml"
    path.write_text(TEXT)
    return path


def test_manifolds_are_kept(file):
    circuit = load_circuit(file)
    assert circuit.manifolds == (
        Manifold("count", "position", 1, (5, 24), 2, 3),
        Manifold("place", "position", -1, (1, 9)),
    )
    file.write_text(dump_circuit(circuit))
    assert load_circuit(file) == circuit


def test_a_file_without_manifolds_is_written_without(file):
    file.write_text(TEXT[: TEXT.index("manifolds")])
    assert "manifolds" not in dump_circuit(load_circuit(file))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("    layer: 1", "    layers: 1", 11, "unknown key 'layers'; did you mean 'layer'"),
        ("    layer: 1\n", "", 9, "the key 'layer' is missing"),
        ("    layer: 1", "    layer: -2", 11, "layer must be a whole number from -1, got -2"),
        ("    layer: 1", "    layer: yes", 11, "layer must be a whole number, got True"),
        ("    step: 2", "    step: 0", 13, "step must be a whole number from 1, got 0"),
        ("[5, 24]", "[24, 5]", 12, "such as [5, 60], got [24, 5]"),
        ("[5, 24]", "5", 12, "such as [5, 60], got 5"),
        ("[5, 24]", "[5, 24.5]", 12, "such as [5, 60], got [5, 24.5]"),
        ("    dimensions: 3", "    dimensions: 10", 14, "its 10 classes of values span 9 dim"),
        ("    variable: position", "    variable: 3", 10, "variable must be a name, got 3"),
        ("  count:", "  count.x:", 9, "the name 'count.x' of a manifold is used in log keys"),
        ("  place: {variable: position, layer: -1, values: [1, 9]}", "  place: 3", 15, "must map"),
    ],
)
def test_mistakes_are_told_with_their_line(file, old, new, line, message):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError, match=r"\S") as raised:
        load_circuit(file)
    assert str(raised.value).startswith(f"{file}:{line}: ")
    assert message in str(raised.value)


def test_a_layer_outside_the_model_is_refused(file):
    circuit = load_circuit(file)
    circuit.check_model(2, 4)
    with pytest.raises(CircuitError, match="layer 1 is outside the model, whose layers run") as it:
        circuit.check_model(1, 4)
    assert it.value.keys == ("manifolds", "count", "layer")


def test_other_heads_keep_the_manifolds(file):
    circuit = load_circuit(file)
    assert circuit.with_random_heads(4, 0).manifolds == circuit.manifolds


def test_classes_and_their_values():
    manifold = Manifold("count", "position", 0, (5, 11), step=3, dimensions=1)
    assert manifold.classes == 3
    assert [manifold.value_of(number) for number in range(3)] == [6, 9, 11]
    assert [manifold.says(number) for number in range(3)] == ["5 to 7", "8 to 10", "11"]
