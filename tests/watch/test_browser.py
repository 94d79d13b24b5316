"""The page in a browser, while its log grows."""

import json
import os
import time

import pytest

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"
MANY = {f"L{number // 12}H{number % 12}": 0.5 for number in range(144)}


@pytest.fixture
def opened(browser, serve):
    """Opens the page of a run; in the end, nothing may have gone wrong or been asked elsewhere."""
    pages = []

    def go(run, **settings):
        server = serve(run)
        context = browser.new_context(**settings)
        page = context.new_page()
        wrong, requests = [], []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append("an alert"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.url)
        pages.append((context, server.url, wrong, requests))
        return page

    yield go
    for context, url, wrong, requests in pages:
        context.close()
        assert wrong == []
        assert requests
        assert {request for request in requests if not request.startswith((url, "data:"))} == set()


def shown(page, place, text, within_s=20.0):
    """Wait until `text` stands at `place`; seconds that it took."""
    started = time.monotonic()
    page.locator(place, has_text=text).first.wait_for(timeout=1000 * within_s)
    return time.monotonic() - started


def metrics(step, circuit="induction", share=1.0):
    return {
        "step": step,
        "train/loss_nats": 2.5,
        "val/loss_nats": "nan",
        f"circuit/{circuit}/identity_retention": share,
        f"circuit/{circuit}/penalty": 0.25,
        f"circuit/{circuit}/penalty/pattern": 0.25,
        f"circuit/{circuit}/induction/lost": 3,
        "capability/text/loss_nats": 2.0,
    }


def headings(page):
    return page.locator("#sections h2").all_inner_texts()


def test_a_new_eval_appears_within_three_seconds(opened, folder, write_heads, write_metrics):
    page = opened(folder.parents[1])
    shown(page, "#word", "Nothing logged yet")
    assert page.locator("#empty").is_visible()

    write_heads(folder, [0], {"L0H1": 0.5, "L1H2": 0.25})
    write_metrics(folder, [metrics(0)])
    shown(page, "#detail", "step 0")
    shown(page, "#word", "Running")
    assert not page.locator("#empty").is_visible()
    assert headings(page) == ["induction", "Training", "Capability"]
    assert page.locator(".js-plotly-plot").count() == page.locator(".place").count() == 6

    page.locator(".place").first.evaluate("place => { place.dataset.same = 'yes'; }")
    write_heads(folder, [10], {"L0H1": 0.125, "L1H2": 0.25})
    write_metrics(folder, [metrics(10, share=0.5)], "a")
    assert shown(page, ".legend", "L0H1 0.125", 3.0) < 3
    assert shown(page, "#summary .under", "50%", 3.0) < 3
    assert page.locator("#summary td").all_inner_texts()[3] == "3"
    # The charts were brought up to date, not made anew.
    assert page.locator(".place").first.get_attribute("data-same") == "yes"
    drawn = "place => place.data[0].x.join()"
    assert page.locator("[data-same]").evaluate(drawn) == "0,10"
    assert "no number" in page.locator(".legend", has_text="val/loss_nats").inner_text()

    # Lightning writes all again when a column comes; a resumed run goes back.
    write_metrics(folder, [metrics(0), {**metrics(10), "val/accuracy": 0.75}])
    write_heads(folder, [5], {"L0H1": 0.0625, "L1H2": 0.25})
    shown(page, ".legend", "val/accuracy 0.750")
    shown(page, ".legend", "L0H1 0.0625")


def test_names_are_text(opened, folder, write_heads, write_metrics):
    """The monitor's table would take any name; so does the page."""
    write_metrics(folder, [metrics(0, HOSTILE), metrics(1, HOSTILE), {"step": 2, HOSTILE: 1}])
    for scores in ({HOSTILE: 0.5}, {**MANY, HOSTILE: 0.5}):
        write_heads(folder, [0, 1], scores, HOSTILE, f"{HOSTILE} {len(scores)}")
    newer = folder.with_name(HOSTILE)
    newer.mkdir()
    write_metrics(newer, [metrics(0)])
    os.utime(newer / "metrics.csv", (1e9, 1e9))
    page = opened(folder.parents[1])
    shown(page, "#detail", "step")
    assert headings(page)[0] == HOSTILE
    page.locator("#log").select_option("logs/version_0")
    for details in page.locator("summary").all():
        details.click()
    page.locator("[name=quantity][value=retention]").check()
    for place in page.locator(".place").all():
        place.hover()
    assert page.locator("img, a").count() == 0
    assert page.locator("#log option").all_inner_texts()[1:] == [
        f"logs/{HOSTILE}",
        "logs/version_0",
    ]


def test_the_newest_version_is_followed_until_another_is_chosen(opened, folder, write_metrics):
    write_metrics(folder, [metrics(7)])
    page = opened(folder.parents[1])
    shown(page, "#detail", "step 7")
    assert not page.locator("#log").is_visible()
    newer = folder.with_name("version_1")
    newer.mkdir()
    write_metrics(newer, [metrics(3)])
    shown(page, "#detail", "step 3")
    shown(page, "#detail", "logs/version_1")
    page.locator("#log").select_option("logs/version_0")
    shown(page, "#detail", "step 7")
    newest = folder.with_name("version_2")
    newest.mkdir()
    write_metrics(newest, [metrics(1)])
    page.locator("#log option", has_text="version_2").wait_for(state="attached", timeout=20_000)
    assert "step 7" in page.locator("#detail").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_without_scrolling_aside(opened, folder, write_heads, scheme):
    write_heads(folder, range(0, 100, 10), MANY)
    page = opened(folder, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    shown(page, "#detail", "step 90")
    page.locator(".js-plotly-plot").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("summary").click()
    page.locator("figure tbody tr").nth(143).wait_for()
    assert page.locator("figure tbody tr").count() == 144


def test_paper_and_back(opened, folder, write_heads):
    write_heads(folder, [0, 10], {"L0H1": 0.5})
    page = opened(folder, viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page.locator(".js-plotly-plot").wait_for()

    def becomes(width):
        """The browser tells the page of its new medium a moment later."""
        chart = page.locator(".place .main-svg").first
        end = time.monotonic() + 10
        while (found := chart.bounding_box()["width"]) != width and time.monotonic() < end:
            time.sleep(0.1)
        return found == width

    before = page.locator(".place .main-svg").first.bounding_box()["width"]
    page.emulate_media(media="print")
    assert becomes(325)
    assert not page.locator(".controls").is_visible()
    page.emulate_media(media="screen")
    assert becomes(before)


def test_a_paused_page_waits(opened, folder, write_metrics):
    write_metrics(folder, [metrics(0)])
    page = opened(folder)
    shown(page, "#detail", "step 0")
    page.locator("#pause").press("Enter")
    shown(page, "#detail", "paused")
    write_metrics(folder, [metrics(1)], "a")
    time.sleep(2)
    assert "step 0" in page.locator("#detail").inner_text()
    page.locator("#pause").press("Enter")
    shown(page, "#detail", "step 1")


def test_thinning_keeps_peaks_gaps_and_ends(opened, folder):
    page = opened(folder)
    values = [0.5] * 10_000
    values[1234], values[5678], values[7000], values[-1] = 9.0, -9.0, None, 0.25
    kept = page.evaluate(f"thinned({json.dumps(values)}, 600)")
    assert len(kept) <= 600
    assert {0, 1234, 5678, 7000, 9999} <= set(kept)
    assert kept == sorted(set(kept))
    assert page.evaluate("thinned([1, null, 2], 3)") == [0, 1, 2]
    assert page.evaluate("even(1000, 4)") == [0, 333, 666, 999]
    assert page.evaluate("even(3, 4)") == [0, 1, 2]
