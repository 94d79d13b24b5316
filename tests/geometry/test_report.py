"""The table, the JSON and the CSV of a model's geometry."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from circuitkeep.capture import attach
from circuitkeep.geometry import head_geometry
from circuitkeep.geometry.report import COLUMNS, figures, ordered, table, to_csv, to_json


@pytest.fixture(scope="module")
def heads(request):
    return head_geometry(attach(request.getfixturevalue("tiny_model")("llama")))


def test_files_hold_every_figure(heads):
    content = json.loads(to_json(heads, "somewhere"))
    assert content["model"] == "somewhere"
    rows = list(csv.DictReader(io.StringIO(to_csv(heads))))
    assert [row["head"] for row in rows] == [str(head.head) for head in heads]
    for head, row, entry in zip(heads, rows, content["heads"], strict=True):
        for name, value in figures(head).items():
            assert float(row[name]) == entry[name] == value
        assert len(entry["eigenvalues"]) == len(entry["singular_values"])


def test_no_number_is_no_number(heads):
    broken = replace(heads[0], ov=replace(heads[0].ov, turn=math.nan))
    assert json.loads(to_json([broken], ""))["heads"][0]["ov_turn"] is None
    assert next(csv.DictReader(io.StringIO(to_csv([broken]))))["ov_turn"] == ""
    assert ordered([broken, heads[1]], "ov_turn")[-1] is broken


def test_in_the_order_of_a_figure(heads):
    gains = [head.ov.gain for head in ordered(heads, "ov_gain")]
    assert gains == sorted(gains, reverse=True)
    assert ordered(heads, None) == list(heads)
    with pytest.raises(ValueError, match="did you mean 'ov_gain'"):
        ordered(heads, "ov_gian")
    assert "ov_gain" in COLUMNS


def test_the_table(heads):
    console = Console(file=io.StringIO(), width=140)
    console.print(table(heads))
    assert all(str(head.head) in console.file.getvalue() for head in heads)
