"""The page in a browser: what hostile names do, keys, telephones and paper."""

import shutil

import pytest

from circuitkeep.nightly.page import render_page
from circuitkeep.nightly.trend import trends

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"this machine has none of {', '.join(NAMES)}"),
]
HOSTILE = "<img src=x onerror=alert(1)>"


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
    """Opens the page of a history; in the end, nothing may have gone wrong or been asked for."""
    contexts, wrong = [], []

    def go(content, **settings):
        path = tmp_path / "nightly.html"
        path.write_text(render_page(trends(content, 365), "h.sqlite"), encoding="utf-8")
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
        page.locator("#controls").wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def test_only_what_is_near_is_drawn(opened, large):
    page = opened(large.read(), viewport={"width": 1440, "height": 900})
    assert page.locator(".place").count() == 10
    assert page.locator(".js-plotly-plot").count() < 10
    page.locator("[data-chart='9']").scroll_into_view_if_needed()
    page.locator("[data-chart='9'] .main-svg").first.wait_for()


def test_keys_choose_what_is_shown(opened, large):
    page = opened(large.read(), viewport={"width": 1440, "height": 900})
    page.locator("#only").focus()
    page.keyboard.press("Space")
    assert page.locator("figure:visible").count() == 2
    page.locator("#checkpoint").select_option("model-7")
    assert page.locator("figure:visible").count() == 1
    assert page.locator(".legend li:visible").all_inner_texts()[0].startswith("model-7")
    chart = page.locator("figure:visible .js-plotly-plot")
    chart.wait_for()
    # One checkpoint alone has its interval and its baseline: two bounds, two lines, the marks.
    drawn = "document.querySelector('figure:not([hidden]) .place').data"
    page.wait_for_function(f"{drawn}?.length === 5")
    page.locator("#checkpoint").select_option("model-1")
    assert page.locator("#nothing").is_visible()
    heading = page.locator("table.sorts th button").first
    heading.focus()
    page.keyboard.press("Enter")
    assert page.locator("table.sorts th").first.get_attribute("aria-sort") == "ascending"


def test_names_are_text(opened, history, make_night, make_measured):
    for number in range(2):
        row = make_measured(circuit=HOSTILE, check=HOSTILE, checkpoint=HOSTILE, unit=HOSTILE)
        history.append(make_night(number, command=HOSTILE), [row])
    page = opened(history.read())
    place = page.locator(".place")
    place.scroll_into_view_if_needed()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    place.hover()
    assert page.locator("img").count() == 0
    assert page.locator("h3").first.inner_text() == HOSTILE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_without_scrolling_aside(opened, large, scheme):
    page = opened(large.read(), viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_paper_has_all_charts(opened, large):
    page = opened(large.read(), viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print")
    page.locator("[data-chart='9'] .main-svg").first.wait_for()
    assert page.locator(".js-plotly-plot").count() == 10
    assert not page.locator("#controls").is_visible()


def test_the_first_paint_of_ten_thousand_measurements(opened, large):
    page = opened(large.read(), viewport={"width": 1440, "height": 900})
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 3000
