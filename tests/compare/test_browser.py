"""The page in a browser: what its controls do, its colours, and what hostile names do."""

from dataclasses import replace

import pytest

from circuitkeep.compare.page import render_page

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"
CELLS = "(place) => place.data[0].z"
MAP = "figure [data-chart]:has(.heatmaplayer .hm)"
SIZES = {"screen": {"width": 1440, "height": 900}, "telephone": {"width": 390, "height": 844}}


def with_hostile_names(report):
    first = replace(report.checkpoints[0], name=HOSTILE)
    prompts = tuple(
        replace(prompt, text=HOSTILE, tokens=(HOSTILE, *prompt.tokens[1:]))
        for prompt in report.prompts
    )
    rows = report.transfer and tuple(replace(r, trained_on=HOSTILE) for r in report.transfer.rows)
    return replace(
        report,
        checkpoints=(first, *report.checkpoints[1:]),
        prompts=prompts,
        transfer=report.transfer and replace(report.transfer, rows=rows),
    )


def press(page, place, column, row):
    """Click a cell of a heatmap."""
    place.scroll_into_view_if_needed()
    x, y = place.evaluate(
        """(place, [column, row]) => {
          const { xaxis, yaxis } = place._fullLayout;
          const { left, top } = place.getBoundingClientRect();
          return [left + xaxis._offset + xaxis.d2p(column), top + yaxis._offset + yaxis.d2p(row)];
        }""",
        [column, row],
    )
    page.mouse.move(x, y)
    page.mouse.click(x, y)


def test_keys_move_the_slider_and_the_map(opened, trajectory):
    page = opened(render_page(trajectory))
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


@pytest.mark.parametrize(("size", "scheme"), [("screen", "light"), ("telephone", "dark")])
@pytest.mark.parametrize("kind", ["report", "trajectory", "everything"])
def test_hostile_names_are_text_and_nothing_is_cut_off(opened, request, kind, size, scheme):
    report = with_hostile_names(request.getfixturevalue(kind))
    page = opened(render_page(report), viewport=SIZES[size], color_scheme=scheme)
    assert page.locator("img").count() == 0
    assert page.locator("main table tbody th", has_text=HOSTILE).count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
    if report.prompts:
        # A token: at both axes of the three matrices, shortened; whole in the sentence.
        ticks = page.locator(".squares .xtick text, .squares .ytick text", has_text="<img␣sr")
        assert ticks.count() + page.locator(".squares text", has_text="<img src…").count() == 6
        squares = page.locator("#attention-squares")
        for _ in range(5):
            squares.press("ArrowUp")
        assert page.locator("#attention-said").inner_text().startswith(f"“{HOSTILE}” (0) pays")
        press(page, page.locator("#attention-left-map"), 0, 2)
        assert HOSTILE in page.locator(".hovertext").first.text_content()


def test_a_chart_can_be_saved(opened, report):
    page = opened(render_page(report))
    place = page.locator("[data-chart]").first
    place.hover()
    with page.expect_download() as download:
        place.locator(".modebar-btn").click()
    assert download.value.suggested_filename == "induction-retention.svg"


def test_a_head_of_a_map_opens_its_pattern_in_that_model(opened, everything):
    page = opened(render_page(everything))
    # The second role's map of the second checkpoint, which is model 2.
    press(page, page.locator("[data-model='2']").nth(1), 3, 1)
    head = page.locator("#attention-head")
    assert head.locator("option:checked").inner_text() == "L1H3"
    assert page.locator("#attention-right option:checked").inner_text() == "patterns-only"
    assert page.locator("#attention-right-name").inner_text() == "L1H3 in patterns-only"
    shown = page.locator("#attention-right-map").evaluate(CELLS)
    expected = everything.prompts[0].rows(2, "L1H3")
    for row, wanted in zip(shown, expected, strict=True):
        assert row[: len(wanted)] == pytest.approx(wanted, abs=1e-3)
        assert set(row[len(wanted) :]) <= {None}
    left = page.locator("#attention-left-map").evaluate(CELLS)
    apart = page.locator("#attention-difference-map").evaluate(CELLS)
    assert apart[3][1] == pytest.approx(shown[3][1] - left[3][1])


def test_a_slider_tells_which_model_a_head_opens_in(opened, everything):
    page = opened(render_page(replace(everything, steps=(100, 200, 300))))
    page.get_by_role("slider", name="Training step").first.press("ArrowLeft")
    press(page, page.locator("[data-model]").first, 0, 1)
    assert page.locator("#attention-right-name").inner_text() == "L1H0 in patterns-only"


def test_keys_choose_the_cell_and_lists_the_models(opened, everything):
    page = opened(render_page(everything))
    page.locator("#attention-head").select_option(label="L0H0")
    page.locator("#attention-left").select_option(label="regularized")
    page.locator("#attention-right").select_option(label="base")
    squares, said = page.locator("#attention-squares"), page.locator("#attention-said")
    for key in ("ArrowLeft",) * 5 + ("ArrowUp", "ArrowUp", "ArrowRight"):
        squares.press(key)
    left, right = (everything.prompts[0].rows(model, "L0H0")[2][1] for model in (3, 0))
    assert said.inner_text() == (
        f"“a&b” (2) pays {left:.2f} of its attention to “␣<b>” (1) in regularized, "
        f"{right:.2f} in base."
    )


def test_tables_sort(opened, everything):
    page = opened(render_page(everything))
    table = page.locator("table.sorts").first
    heading = table.get_by_role("button", name="behaviour")
    names = table.locator("tbody th")
    heading.press("Enter")
    kept = ["unregularized", "patterns-only", "regularized", "base"]
    assert names.all_inner_texts() == kept
    assert heading.locator("..").get_attribute("aria-sort") == "ascending"
    heading.press("Enter")
    assert names.all_inner_texts() == kept[::-1]


def test_the_matrix_shows_the_chosen_kind(opened, everything):
    row = everything.transfer.rows[0]
    shares = {"induction": {**row.shares["induction"], "causal": (0.25, (0.2, 0.3))}}
    rows = (replace(row, shares={**row.shares, **shares}),)
    report = replace(everything, transfer=replace(everything.transfer, rows=rows))
    page = opened(render_page(report))
    place = page.locator("section[aria-labelledby='transfer'] [data-chart]")
    assert place.evaluate(CELLS) == [[0.9, 0.9]]
    page.locator("select[data-frames]").select_option(label="causal")
    assert place.evaluate(CELLS) == [[0.25, 0.9]]
    assert place.locator(".annotation-text").all_text_contents() == ["25%", "90%"]


def test_nothing_is_cut_off_on_paper(opened, everything):
    page = opened(render_page(everything), viewport=SIZES["screen"])
    page.emulate_media(media="print")
    # A4 with margins of 14 mm, in CSS pixels.
    page.set_viewport_size({"width": 688, "height": 1017})
    over = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
          .filter((each) => each.getBoundingClientRect().right > 688.5 && each.offsetParent)
          .map((each) => `${each.tagName} ${each.id} ${each.getAttribute("class")}`)"""
    )
    assert over == []
