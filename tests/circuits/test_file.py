import pytest

from circuitkeep.circuits import CircuitError, dump_circuit, load_circuit, located

TEXT = """\
name: induction-2L
source: Olsson et al. 2022
roles:
  previous-token: [L0H1]
  induction:
    - L1H3
    - L1H0
probe:
  _target_: circuitkeep.probes.RepeatedTokens
  length: 32
behaviour: accuracy
thresholds:
  induction: 0.4
tests:
  rows: 64
  causal: 0.5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.circuit.yaml"
    path.write_text(TEXT)
    return path


def test_tests_are_kept(file):
    circuit = load_circuit(file)
    assert circuit.tests == {"rows": 64, "causal": 0.5}
    file.write_text(dump_circuit(circuit))
    assert load_circuit(file) == circuit


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("source:", "sauce:", 2, "unknown key 'sauce'"),
        ("name: induction-2L", "name: a b", 1, "the name 'a b'"),
        ("source: Olsson et al. 2022", "source: 3", 2, "'source' must be a non-empty text"),
        ("[L0H1]", "[]", 4, "role 'previous-token' must list its heads"),
        ("[L0H1]", "[L0H1, L0H1]", 4, "a head is named twice"),
        ("    - L1H0", "    - L1Q0", 7, "'L1Q0' is not a head"),
        ("  _target_: circuitkeep.probes.RepeatedTokens", "  a: b", 8, "the key '_target_'"),
        ("behaviour: accuracy", "behaviour: good", 11, "unknown behaviour 'good'"),
        ("  induction: 0.4", "  induction: 4", 13, "the threshold must be in (0, 1), got 4.0"),
        ("  induction: 0.4", "  induction: yes", 13, "got True for 'induction'"),
        ("  induction: 0.4", "  copying: 0.4", 13, "which is none of its roles"),
        ("thresholds:\n  induction: 0.4", "thresholds: 0.4", 12, "must map roles to numbers"),
        ("tests:\n  rows: 64\n  causal: 0.5", "tests: [rows]", 14, "'tests' must map checks"),
        ("  length: 32", "  length: 32\n  length: 33", 11, "the key 'length' stands twice"),
        ("  rows: 64", " rows: 64", 16, "not YAML"),
        ("behaviour: accuracy\n", "", 1, "the key 'behaviour' is missing"),
    ],
)
def test_mistakes_are_told_with_their_line(file, old, new, line, message):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"^.*x\.circuit\.yaml:{line}: ") as caught:
        load_circuit(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["day: 2024-13-45", "x: !!python/name:os.system", "[" * 3000, "- &a [*a]"]
)
def test_what_yaml_stumbles_over(file, text):
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^.*x\.circuit\.yaml:?\d*: "):
        load_circuit(file)


def test_places(file):
    for keys, line in (
        ((), 1),
        (("probe", "length"), 10),
        (("probe", "width"), 8),
        (("roles", "induction", 1), 7),
        (("roles", "induction", 5), 5),
        (("name", "deeper"), 1),
        (("tests", "causal"), 16),
    ):
        with pytest.raises(ValueError, match=rf"x\.circuit\.yaml:{line}: wrong"), located(file):
            raise CircuitError("wrong", *keys)
