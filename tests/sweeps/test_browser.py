"""The page of a sweep in a browser: its plot, its tables, and what hostile names do."""

from dataclasses import replace

import pytest

from circuitkeep.sweeps.page import render_page

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1440, "light"), (390, "dark")], ids=["screen", "telephone"]
)
def test_hostile_names_are_text_and_the_plot_is_drawn(opened, report, width, scheme):
    groups = (replace(report.groups[0], label=HOSTILE), *report.groups[1:])
    page = opened(
        render_page(replace(report, groups=groups, folder=HOSTILE)),
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    assert page.locator("img").count() == 0
    assert page.locator("main tbody th", has_text=HOSTILE).count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") == width
    plot = page.locator("[data-chart]")
    # A point per setting, and the front that joins two of them.
    assert plot.locator(".scatterlayer .point").count() == 3
    assert plot.locator(".scatterlayer .js-line").count() == 1
    assert HOSTILE in plot.locator(".textpoint").all_text_contents()


def test_tables_sort_by_figures_and_by_names(opened, report):
    page = opened(render_page(report))
    table = page.locator("table.sorts").first
    names = table.locator("tbody th")
    labels = [group.label for group in report.groups]

    def shown():
        return [text.removesuffix("◆").strip() for text in names.all_inner_texts()]

    assert shown() == labels  # 0, 1, 10: keep 31%, 81% and 61%
    heading = table.get_by_role("button", name="behaviour")
    heading.press("Enter")
    assert shown() == [labels[0], labels[2], labels[1]]
    heading.press("Enter")
    assert shown() == [labels[1], labels[2], labels[0]]
    assert heading.locator("..").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="setting").click()
    assert shown() == sorted(labels)
    assert table.locator("[aria-sort]").count() == 1


def test_the_plot_can_be_saved(opened, report):
    page = opened(render_page(report))
    plot = page.locator("[data-chart]")
    plot.hover()
    with page.expect_download() as download:
        plot.locator(".modebar-btn").click()
    assert download.value.suggested_filename == "ind-price.svg"
