"""Manifolds and maps of heads in a comparison: of models, and how they are shown."""

import copy
import csv
import io
import json
import math
from dataclasses import replace
from io import StringIO

import plotly.graph_objects as go
import pytest
import torch
from rich.console import Console

from circuitkeep.capture.models import save_model
from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.compare.geometry_page import interval, null, said
from circuitkeep.compare.long_table import to_csv
from circuitkeep.compare.measure import compare
from circuitkeep.compare.page import render_page, shown
from circuitkeep.compare.terminal import print_report
from circuitkeep.functional.manifolds import TransformDrift
from circuitkeep.manifolds.drift import Estimate

PLACES = Manifold("places", "position", 0, (1, 12), 1, 3)
PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 14, "segment": [4, 5]}


def circuit(name="repeats", manifolds=(PLACES,)):
    roles = (Role("induction", (Head(1, 0), Head(1, 2))),)
    return Circuit(name, roles, PROBE, "accuracy", "made up", manifolds=manifolds)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("gpt2")
    save_model(base, folder / "base")
    for step, size in ((100, 0.0), (200, 0.05), (300, 0.15)):
        changed = copy.deepcopy(base)
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        save_model(changed, folder / f"step{step}")
    return folder


CIRCUITS = (circuit(),)


def compared(models, trajectory=False, circuits=CIRCUITS, names=(100, 200, 300), **options):
    checkpoints = {f"step{step}": models / f"step{step}" for step in names}
    return compare(
        models / "base", checkpoints, circuits, rows=24, trajectory=trajectory, **options
    )


@pytest.fixture(scope="module", params=["side by side", "trajectory"])
def report(request, models):
    return compared(models, request.param == "trajectory")


def test_what_did_not_move_and_what_did(report):
    found = [each.geometry["repeats"] for each in report.checkpoints]
    same, little, much = (each.manifolds["places"].drift for each in found)
    assert tuple(same) == TransformDrift._fields
    assert same["shape"].value == same["place"].value == pytest.approx(1, abs=1e-6)
    assert 1 > little["place"].value > much["place"].value
    assert 1 > little["shape"].value > much["shape"].value
    for drift in (same, little, much):
        for one in drift.values():
            assert one.low <= one.value <= one.high
    assert set(found[0].heads) == {"L1H0", "L1H2"}
    assert found[0].heads["L1H0"].ov_angle == 0
    assert 0.05 < found[1].heads["L1H0"].ov_angle < found[2].heads["L1H0"].ov_angle
    described = report.circuits["repeats"].manifolds["places"]
    assert described.values == tuple(range(1, 13))
    assert 0.5 < described.null["place"] < 1
    assert 0.3 < described.seen <= 1


def test_the_points_are_the_bases_in_its_own_components(report):
    points = torch.tensor(report.base.geometry["repeats"].manifolds["places"].points)
    assert points.shape == (12, 3)
    assert points.mean(0).abs().max() < 1e-5
    # Principal components: no two go together, and all that is seen is their variance.
    products = points.T @ points / len(points)
    assert (products - products.diag().diag()).abs().max() < 1e-5
    seen = report.circuits["repeats"].manifolds["places"].seen
    assert products.trace().item() == pytest.approx(seen, abs=1e-5)


def test_not_without_manifolds(models):
    report = compared(models, circuits=(circuit(manifolds=()),), names=(100,))
    assert report.base.geometry == report.checkpoints[0].geometry == {}
    assert report.circuits["repeats"].manifolds == {}
    assert ">Geometry<" not in render_page(report)
    assert "Manifolds" not in printed(report)


def test_further_probes_have_no_manifolds(models):
    report = compared(models, names=(200,), probes={"longer": {"length": 18}})
    assert set(report.checkpoints[0].geometry) == {"repeats"}


def test_a_circuit_beside_one_without_manifolds(models):
    report = compared(models, circuits=(circuit(), circuit("other", ())), names=(200,))
    assert set(report.base.geometry) == {"repeats"}
    assert render_page(report).count(">Geometry<") == 1
    assert "repeats, places" in printed(report)


def printed(report, width=200):
    console = Console(file=StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()


def test_printed(report):
    text = printed(report)
    assert "Manifolds against the base's" in text
    assert "halves of base" in text
    drift = report.checkpoints[1].geometry["repeats"].manifolds["places"].drift
    assert said("place", drift["place"].value) in text
    assert "Maps of the named heads" in text
    assert "L1H2" in text
    assert "…" not in printed(report, width=80)


def test_the_page(report):
    page = render_page(report)
    assert page.count(">Geometry<") == 1
    assert "compared in the stream's own basis" in page.replace("&#39;", "'")
    content, charts = shown(report)
    ((name, chart, steps),) = content["sections"][0]["manifolds"]
    assert name == "places"
    assert (steps is None) == (not report.steps)
    frames = charts[chart]["frames"]
    assert len(frames) == 4
    last = report.checkpoints[-1].geometry["repeats"].manifolds["places"].points
    assert frames[-1]["data"][0]["x"] == pytest.approx([point[0] for point in last], abs=1e-4)
    assert charts[chart]["data"][1]["x"] == frames[0]["data"][0]["x"]
    for number in (chart, steps):
        if number is not None:
            drawn = {key: charts[number][key] for key in ("data", "layout")}
            go.Figure(drawn)


def test_the_table_and_the_json(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    place = [row for row in rows if row["quantity"] == "manifold/places/place"]
    assert [row["checkpoint"] for row in place] == ["base", "step100", "step200", "step300"]
    assert float(place[2]["low"]) <= float(place[2]["value"]) <= float(place[2]["high"])
    turned = [row for row in rows if row["quantity"] == "ov_angle" and row["head"] == "L1H0"]
    assert float(turned[3]["value"]) > 0.1
    content = json.loads(report.to_json())
    moved = content["checkpoints"][1]["geometry"]["repeats"]
    assert set(moved["manifolds"]["places"]["drift"]["tilt"]) == {"value", "low", "high"}
    assert moved["heads"]["L1H0"]["qk_angle"] > 0
    assert content["circuits"]["repeats"]["manifolds"]["places"]["null"]["tilt"] > 0


def test_wording():
    assert said("log_scale", 0.0953) == "+10%"
    assert said("tilt", 0.5) == "29°"
    assert said("tilt", math.nan) == "n/a"
    assert interval("place", Estimate(math.nan, math.nan, math.nan)) == ""
    assert interval("rotation", Estimate(0.5, 0.25, 1.0)) == "[14, 57]"
    assert interval("shape", Estimate(0.9, 0.8, 0.95)) == "[80, 95]"
    assert null("shape", 0.97) == "≥ 97%"
    assert null("log_scale", 0.02) == "± 2%"


def test_names_from_outside_are_text(report):
    hostile = "<img src=x onerror=alert(1)>"
    described = report.circuits["repeats"].manifolds["places"]
    circuits = {
        "repeats": replace(
            report.circuits["repeats"],
            manifolds={"places": replace(described, variable=hostile)},
        )
    }
    first = replace(report.checkpoints[0], name=hostile)
    page = render_page(
        replace(report, circuits=circuits, checkpoints=(first, *report.checkpoints[1:]))
    )
    assert "<img" not in page.split("<script")[0]
    assert "&lt;img" in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
def test_in_a_browser(report, browser, tmp_path, width):
    """Every checkpoint can be chosen, and nothing goes wrong; graphics drivers may warn."""
    (tmp_path / "report.html").write_text(render_page(report), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
        ),
    )
    page.goto((tmp_path / "report.html").as_uri())
    chart = page.locator("[data-chart]:has(.gl-container canvas)").first
    chart.wait_for()
    seen = chart.evaluate("(place) => place.data.map((trace) => trace.x)")
    assert seen[0] != seen[1]
    if report.steps:
        page.get_by_role("slider", name="Training step").first.press("Home")
    else:
        page.locator("select[data-frames]").first.select_option("base")
    seen = chart.evaluate("(place) => place.data.map((trace) => trace.x)")
    assert seen[0] == seen[1]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    context.close()
    assert wrong == []
