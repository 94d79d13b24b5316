"""The page in a browser: what hostile names do, keys, telephones and paper."""

import pytest

from circuitkeep.nightly.page import render_page
from circuitkeep.nightly.trend import trends

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def shown(opened):
    """Opens the page of a history."""
    return lambda content, **settings: opened(
        render_page(trends(content, 365), "h.sqlite"), ready="#controls", **settings
    )


def test_only_what_is_near_is_drawn(shown, large):
    page = shown(large.read(), viewport={"width": 1440, "height": 900})
    assert page.locator(".place").count() == 10
    assert page.locator(".js-plotly-plot").count() < 10
    page.locator("[data-chart='9']").scroll_into_view_if_needed()
    page.locator("[data-chart='9'] .main-svg").first.wait_for()


def test_keys_choose_what_is_shown(shown, large):
    page = shown(large.read(), viewport={"width": 1440, "height": 900})
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


def test_names_are_text(shown, history, make_night, make_measured):
    for number in range(2):
        row = make_measured(circuit=HOSTILE, check=HOSTILE, checkpoint=HOSTILE, unit=HOSTILE)
        history.append(make_night(number, command=HOSTILE), [row])
    page = shown(history.read())
    place = page.locator(".place")
    place.scroll_into_view_if_needed()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    place.hover()
    assert page.locator("img").count() == 0
    assert page.locator("h3").first.inner_text() == HOSTILE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_without_scrolling_aside(shown, large, scheme):
    page = shown(large.read(), viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_paper_has_all_charts(shown, large):
    page = shown(large.read(), viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print")
    page.locator("[data-chart='9'] .main-svg").first.wait_for()
    assert page.locator(".js-plotly-plot").count() == 10
    assert not page.locator("#controls").is_visible()


def test_the_first_paint_of_ten_thousand_measurements(shown, large):
    page = shown(large.read(), viewport={"width": 1440, "height": 900})
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 3000
