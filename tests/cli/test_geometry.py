"""``circuitkeep geometry``: what it prints and writes, and every mistake in one sentence."""

import csv
import json

import pytest

from .test_mistakes import assert_refused

MANIFOLDS = """\
manifolds:
  place:
    variable: {variable}
    layer: {layer}
    values: {values}
    dimensions: 3
"""
RIGHT = {"variable": "position", "layer": 0, "values": "[2, 30]"}
QUICK = ("rows=12", "draws=10")


@pytest.fixture
def with_manifolds(circuit_file):
    """Writes a circuit file that names a manifold, right unless told otherwise."""

    def write(**changes):
        path = circuit_file()
        path.write_text(path.read_text() + MANIFOLDS.format(**{**RIGHT, **changes}))
        return path

    return write


def test_heads_alone(command, models, tmp_path):
    code, out, _ = command("geometry", f"model.path={models / 'tiny'}", "draws=20", "channels=3")
    assert code == 0
    assert "not rotated" in out
    assert "from" in out
    folder = tmp_path / "outputs" / "geometry"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"geometry.json", "geometry.csv", "geometry.html"}
    content = json.loads((folder / "geometry.json").read_text())
    assert content["circuit"] is None
    assert len(content["heads"]) == 8
    assert len(content["channels"]["strongest"]) == 20
    page = (folder / "geometry.html").read_text()
    assert "From head to head" in page
    assert "Manifold" not in page.split("<script")[0]


def test_a_model_of_one_layer_has_no_ways(command, models, tmp_path):
    code, _, _ = command("geometry", f"model.path={models / 'one-layer'}", "output=here")
    assert code == 0
    assert json.loads((tmp_path / "here" / "geometry.json").read_text())["channels"] is None
    assert "From head to head" not in (tmp_path / "here" / "geometry.html").read_text()


def test_manifolds_of_a_circuit(command, models, with_manifolds, tmp_path):
    code, out, _ = command(
        *("geometry", f"model.path={models / 'tiny'}", f"circuit={with_manifolds()}"),
        *("output=here", "top=2", *QUICK),
    )
    assert code == 0
    assert "place" in out
    assert "probe error" in out
    rows = list(csv.DictReader((tmp_path / "here" / "manifolds.csv").read_text().splitlines()))
    assert [(row["manifold"], row["variable"]) for row in rows] == [("place", "position")]
    assert int(rows[0]["prompts"]) == 12
    rows = list(csv.DictReader((tmp_path / "here" / "alignments.csv").read_text().splitlines()))
    assert {row["head"] for row in rows} == {f"L1H{index}" for index in range(4)}
    page = (tmp_path / "here" / "geometry.html").read_text()
    assert "Manifold place: position after layer 0" in page
    content = json.loads((tmp_path / "here" / "geometry.json").read_text())
    assert content["circuit"]["shapes"][0]["manifold"]["layer"] == 0


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"variable": "positon"}, r"ind\.yaml:\d+: .*unknown variable 'positon'; did you mean"),
        ({"variable": "sentence-position"}, "there is no tokenizer"),
        ({"layer": 7}, r"ind\.yaml:\d+: .*layer 7 is outside the model, whose layers run from 0"),
        ({"values": "[2, 60]"}, r"ind\.yaml:\d+: .*position is never \d+ on these"),
        ({"values": "[2, 4]"}, r"ind\.yaml:\d+: .*span 2 dimensions at most, got dimensions=3"),
    ],
)
def test_mistakes_in_the_file(command, models, with_manifolds, tmp_path, changes, wanted):
    result = command(
        *("geometry", f"model.path={models / 'tiny'}", f"circuit={with_manifolds(**changes)}"),
        *QUICK,
    )
    assert_refused(result, wanted, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["sort=ov_gian"], "sort=ov_gian is none of .*did you mean 'ov_gain'"),
        (["top=0"], "top=0: show at least one head"),
        (["rows=2"], "rows=2: give a whole number from 8 on"),
        (["draws=many"], "draws=many: give a whole number from 10 on"),
        (["transcoder=somewhere"], "set circuit=FILE too"),
    ],
)
def test_mistakes_of_settings(command, models, tmp_path, arguments, wanted):
    result = command("geometry", f"model.path={models / 'tiny'}", *arguments)
    assert_refused(result, wanted, tmp_path)


def test_a_circuit_without_manifolds(command, models, circuit_file, tmp_path):
    result = command("geometry", f"model.path={models / 'tiny'}", f"circuit={circuit_file()}")
    assert_refused(result, "circuit 'ind' names no manifolds; add some", tmp_path)
