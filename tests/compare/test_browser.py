"""The page in a browser: its slider, its colours, and what hostile names do."""

import shutil
from dataclasses import replace

import pytest

from circuitkeep.compare.page import render_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"this machine has none of {', '.join(NAMES)}"),
]
HOSTILE = "<img src=x onerror=alert(1)>"
CELLS = "(place) => place.data[0].z"
MAP = "figure [data-chart]:has(.heatmaplayer .hm)"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs rights that containers do not give.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a report; in the end, nothing may have gone wrong or been asked for."""
    contexts, wrong = [], []

    def go(report, **settings):
        path = tmp_path / "report.html"
        path.write_text(render_page(report), encoding="utf-8")
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append("an alert"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.locator(".js-plotly-plot .main-svg").last.wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def test_keys_move_the_slider_and_the_map(opened, trajectory):
    page = opened(trajectory)
    slider = page.get_by_role("slider", name="Training step").nth(1)
    said = page.locator("output").nth(1)
    heads = page.locator(MAP).nth(1)
    assert said.inner_text() == "step 300"
    assert heads.evaluate(CELLS)[1][0] == pytest.approx(0.95 * 0.97, abs=5e-4)
    slider.press("Home")
    assert said.inner_text() == slider.get_attribute("aria-valuetext") == "base"
    assert heads.evaluate(CELLS)[1][0] == 0.95
    slider.press("ArrowRight")
    assert said.inner_text() == "step 100"
    assert heads.evaluate(CELLS)[1][0] == pytest.approx(0.95 * 0.35, abs=5e-4)
    # The other role's slider stays, and new colours leave the step as it is.
    assert page.locator("output").first.inner_text() == "step 300"
    before = heads.evaluate("(place) => place.layout.paper_bgcolor")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "(before) => document.querySelector('.js-plotly-plot').layout.paper_bgcolor !== before",
        arg=before,
    )
    assert heads.evaluate(CELLS)[1][0] == pytest.approx(0.95 * 0.35, abs=5e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "trajectory"])
def test_hostile_names_are_text_and_a_telephone_shows_all(opened, request, kind, scheme):
    report = request.getfixturevalue(kind)
    first = replace(report.checkpoints[0], name=HOSTILE)
    report = replace(report, checkpoints=(first, *report.checkpoints[1:]))
    page = opened(report, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.locator("img").count() == 0
    assert page.locator("main table tbody th", has_text=HOSTILE).count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_chart_can_be_saved(opened, report):
    page = opened(report)
    place = page.locator("[data-chart]").first
    place.hover()
    with page.expect_download() as download:
        place.locator(".modebar-btn").click()
    assert download.value.suggested_filename == "figure-0.svg"
