"""What the terminal, the page and the tables show of a sweep."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from circuitkeep.sweeps.charts import pareto_chart
from circuitkeep.sweeps.page import render_page
from circuitkeep.sweeps.terminal import print_report


def test_the_terminal_shows_every_figure(report):
    text = io.StringIO()
    print_report(report, Console(file=text, width=60))
    printed = text.getvalue()
    for figure in ("31%", "81%", "61%", "+50 pts", "1.010", "+0.100"):
        assert figure in printed
    assert "…" not in printed
    assert re.search(r"penalty.weight=1 \*", printed)
    assert "not finished, and in no figure: w1s9" in printed


def test_the_chart_joins_the_front(report):
    line, beaten, best = pareto_chart(report, "ind")["data"]
    assert line["x"] == pytest.approx([0, 0.1])
    assert line["y"] == pytest.approx([0.31, 0.81], abs=1e-6)
    assert beaten["x"] == pytest.approx([0.3])
    assert best["text"] == ["weight=0", "weight=1"]
    assert "seeds 0, 1, 2" in best["hovertext"][1]
    assert best["error_y"]["array"][1] > 0


def test_the_page_escapes_and_holds_the_figures(report):
    page = render_page(report)
    assert "<sweep>" not in page
    assert "&lt;sweep&gt;" in page
    assert "http:" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    body = page.split("<body>")[1].split("<script")[0]
    for figure in ("81%", "+50 points", "+0.100", "probe seed 10000", "w1s9"):
        assert figure in body
    assert body.count("<tr>") == 1 + 3 + 1 + 6 + 1 + 9


def test_json_and_csv(report):
    content = json.loads(report.to_json())
    assert content["groups"][0]["circuits"]["ind"]["behaviour"]["effect_size"] is None
    assert content["groups"][1]["price_difference"]["seeds"] == 3
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(lines) == 9
    assert float(lines[0]["held_out/ind/behaviour_retention"]) == pytest.approx(0.3, abs=1e-6)
    assert lines[0]["setting"] == "penalty.weight=0"
