import json

import pytest

from circuitkeep.checks.baseline import (
    Baseline,
    Pinned,
    baseline_path,
    read_baseline,
    write_baseline,
)

ONE = Pinned(2.0, 1.9, 2.1, 0.05, 0.0, 1.8, 1e-6, 0.15)
BASELINE = Baseline("c", "abc", 128, 3, 20, 0.01, 0.1, {"causal": ONE})


def test_it_lies_beside_the_circuit(tmp_path):
    for name in ("a.b.circuit.yaml", "a.b.yaml", "a.b.circuit.yml"):
        assert baseline_path(tmp_path / name) == tmp_path / "a.b.baseline.json"


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "c.baseline.json"
    write_baseline(BASELINE, path)
    assert read_baseline(path) == BASELINE
    assert BASELINE.thresholds == {"causal": 1.8}
    assert all(line.count(":") <= 1 for line in path.read_text().splitlines()), "a figure a line"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no baseline: Expecting value"),
        ("[]", "is no baseline"),
        ("{}", "the key 'checks' is missing; `circuitkeep baseline update` writes it anew"),
        ('{"checks": {"causal": {}}}', "the key 'value' is missing"),
        ('{"checks": {"causal": 3}}', "is no baseline"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, text, message):
    path = tmp_path / "c.baseline.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_baseline(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ['"high"', "true", "NaN", "Infinity", "null"])
def test_a_threshold_is_a_number(tmp_path, value):
    path = tmp_path / "c.baseline.json"
    write_baseline(BASELINE, path)
    path.write_text(path.read_text().replace('"threshold": 1.8', f'"threshold": {value}'))
    with pytest.raises(ValueError, match="'threshold' must be a number"):
        read_baseline(path)
    content = json.loads(path.read_text())
    assert content["missed"] == 0.01
