"""The page: self-contained, escaped, drawn by a browser, the same in the tables as in the files."""

import json
import math
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.geometry import charts, head_geometry
from circuitkeep.geometry.channels import channels
from circuitkeep.geometry.circuit import circuit_geometry
from circuitkeep.geometry.page import render_page
from circuitkeep.geometry.place_cells import Tiling

from .conftest import LETTERS, NUMBERS, batch_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def measured(planted):
    roles = (Role("any", (Head(0, 0),)),)
    two = Manifold("flat", "letter", 0, (0, 5), step=2, dimensions=2)
    circuit = Circuit(
        "planted", roles, {}, "accuracy", "planted", manifolds=(LETTERS, NUMBERS, two)
    )
    found = circuit_geometry(planted, circuit, batch_of(seed=0), batch_of(seed=1), draws=10)
    return head_geometry(planted), channels(planted, draws=10), found


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_every_chart_is_one_that_plotly_knows(measured):
    page = render_page("a model", *measured)
    drawn = data_of(page)["charts"]
    placed = sorted(int(place) for place in re.findall(r'data-chart="(\d+)"', page))
    assert placed == list(range(len(drawn)))
    for chart in drawn:
        text = json.dumps({"data": chart["data"], "layout": chart["layout"]})
        go.Figure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", text)))
    kinds = [chart["data"][0]["type"] for chart in drawn]
    assert kinds.count("scatter3d") == 3
    space = next(chart for chart in drawn if chart["name"] == "letters-3d")
    assert space["data"][0]["text"][3] == "letter 3"
    assert len(space["data"][0]["z"]) == 16


def test_the_offset_is_drawn_where_it_is(measured):
    _, _, found = measured
    shapes = {shape.manifold.name: shape for shape in found.shapes}
    best = next(o for o in found.alignments if (o.query, o.key) == ("letters", "numbers"))
    line = charts.alignment_chart(best, shapes["letters"], shapes["numbers"])["layout"]["shapes"][0]
    assert (line["x0"] - line["y0"], line["x1"] - line["y1"]) == (5, 5)
    assert 0 <= line["y0"] < line["y1"] <= 15
    assert line["x1"] == 15


def test_tables_hold_the_figures(measured):
    heads, ways, found = measured
    page = render_page("a model", heads, ways, found)
    assert "Heads from letters to numbers" in page
    assert "L0H1, offset 5.0" in page
    assert "nan" not in page.split("plotly.js")[0].lower()
    assert f"{ways.pairs} ways" in page
    alone = render_page("a model", heads)
    assert "Manifold" not in alone.split("<script")[0]
    assert "From head to head" not in alone


def test_place_cells_are_drawn(measured):
    heads, ways, found = measured
    tiled = Tiling("letters", 0, 20, 9, (3, 5), (1.0, 7.0), (3.0, 5.0), 0.5, math.nan)
    none = replace(tiled, manifold="numbers", cells=(), preferred=(), widths=())
    page = render_page("m", heads, ways, replace(found, tilings=(tiled, none)))
    assert "2 of 20 features of layer 0 are place cells" in page
    assert "0 of 20 features of layer 0 are place cells" in page
    assert "value and width: n/a" in page
    assert sum(chart["name"].endswith("place-cells") for chart in data_of(page)["charts"]) == 1


def test_names_are_escaped_and_nothing_is_loaded(measured):
    heads, ways, found = measured
    page = render_page(HOSTILE, heads, ways, found)
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r'(src|href)="(?!data:)', page.split("<script>")[0])
    assert "default-src 'none'" in page


@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_draws_it(measured, browser, tmp_path, width):
    path = tmp_path / "geometry.html"
    path.write_text(render_page(HOSTILE, *measured), encoding="utf-8")
    wrong = []
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append("an alert"))
    page.on(
        "console",
        # The driver of the machine's graphics says how fast it is; that is no fault of the page.
        lambda message: message.type == "error" and wrong.append(message.text),
    )
    page.goto(path.as_uri())
    page.locator(".js-plotly-plot .main-svg").last.wait_for()
    assert page.locator(".js-plotly-plot").count() == page.locator("[data-chart]").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert wrong == []
