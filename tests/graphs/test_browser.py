"""The page in a browser: what pointer, keys and controls do, and what hostile tokens do."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from circuitkeep.circuits import Head
from circuitkeep.graphs import Node
from circuitkeep.graphs.extras import Extras, HeadEdge, Reason
from circuitkeep.graphs.features import Context, LogitEffects
from circuitkeep.graphs.influence import input_shares, prune
from circuitkeep.graphs.page import render_page
from circuitkeep.graphs.wording import Score, node_name

from .conftest import made_graph

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"
SIZES = {"screen": {"width": 1440, "height": 900}, "telephone": {"width": 390, "height": 844}}
READY = "body[data-ready]"


@pytest.fixture
def graph():
    return made_graph()


@pytest.fixture
def show(opened, graph):
    """Opens the page of a whole graph."""

    def go(shown=graph, extras=None, **settings):
        settings = {"viewport": SIZES["screen"], **settings}
        return opened(render_page(shown, prune(shown, 1.0, 1.0), extras), READY, **settings)

    return go


def at(page, place):
    """Where a node is in the window."""
    page.locator("#graph").scroll_into_view_if_needed()
    box = page.locator("#graph").bounding_box()
    x, y = page.evaluate(f"toScreen({place})")
    return box["x"] + x, box["y"] + y


def pinned(page):
    return page.locator("#pins .name").all_inner_texts()


def clear(page):
    page.get_by_role("button", name="Remove all").click()
    assert pinned(page) == []


def test_a_click_pins_and_another_removes(show, graph):
    page = show()
    clear(page)
    place, logit = graph.places[Node("feature", 1, 2, 7)], len(graph) - 2
    page.mouse.click(*at(page, place))
    page.mouse.click(*at(page, logit))
    assert pinned(page) == [node_name(graph, place), node_name(graph, logit)]
    drawing = page.get_by_role("img", name="Subgraph of 2 pinned nodes and 1 edges")
    label = f"{graph.edges[logit, place]:+.2f}".replace("-", "−")
    assert drawing.locator(".label").text_content() == label
    page.mouse.click(*at(page, logit))
    assert pinned(page) == [node_name(graph, place)]
    page.get_by_role("button", name=f"Remove {node_name(graph, place)}").click()
    assert pinned(page) == []
    assert page.evaluate("document.activeElement.id") == "graph"


def test_pointing_tells_what_a_node_is(show, graph):
    place = graph.places[Node("feature", 1, 2, 7)]
    first = input_shares(graph.edges)[place].argmax().item()
    edge = (graph.nodes[first], graph.nodes[place])
    heads = {edge: [("L1H3", 0.25), ("no head", -0.5)]}
    contexts = {(1, 7): [Context((3, 4), (0.0, 1.5))]}
    effects = {(1, 7): LogitEffects(((5, 2.0),), ((6, -1.0),))}
    scores = (Score("completeness", "81%", "How much."),)
    extras = Extras(scores, heads, {}, contexts, effects, lambda token: f" w{token}")
    page = show(extras=extras)
    page.mouse.move(*at(page, place))
    told = page.locator("aside").inner_text()
    assert page.locator("#node-name").inner_text() == node_name(graph, place)
    assert f"{graph.activations[place]:.2f}" in told
    assert "␣w5" in told.split("promotes")[1].split("suppresses")[0]
    assert page.locator(".context .lit").all_inner_texts() == [" w4"]
    inputs = page.locator("#node table").first.locator("tbody tr")
    assert inputs.first.locator(".name").inner_text() == node_name(graph, first)
    values = inputs.first.locator(".figure").all_inner_texts()
    assert values[0] == f"{graph.edges[place, first]:+.2f}".replace("-", "−")
    assert inputs.first.locator("small").inner_text() == "L1H3 +0.25, no head −0.50"
    assert page.locator("#tip").inner_text().startswith(node_name(graph, place))
    assert "81%" in page.locator("section[aria-labelledby='scores']").inner_text()
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()
    # The last one stays to be read.
    assert page.locator("#node-name").inner_text() == node_name(graph, place)
    inputs.first.locator(".name").click()
    assert page.locator("#node-name").inner_text() == node_name(graph, first)


def test_keys_do_what_the_pointer_does(show, graph):
    page = show()
    clear(page)
    canvas, name = page.locator("#graph"), page.locator("#node-name")
    last = len(graph) - 1
    begun = page.evaluate("[camera.x, camera.y]")
    canvas.press("ArrowRight")  # begins at the likeliest output
    assert name.inner_text() == node_name(graph, last - 1)
    canvas.press("ArrowRight")
    assert name.inner_text() == node_name(graph, last)
    canvas.press("Enter")
    assert pinned(page) == [node_name(graph, last)]
    canvas.press("ArrowDown")
    assert name.inner_text().startswith(("L1 feature", "L1 error"))
    for _ in range(2):
        canvas.press("ArrowDown")
    assert name.inner_text().startswith("token")
    canvas.press("ArrowUp")
    assert name.inner_text().startswith(("L0 feature", "L0 error"))
    # All of it was in sight, so nothing moved.
    scale, left = page.evaluate("[camera.scale, camera.x]")
    assert left == pytest.approx(begun[0])
    assert page.evaluate("camera.y") == pytest.approx(begun[1])
    canvas.press("+")
    assert page.evaluate("camera.scale") == pytest.approx(1.3 * scale)
    left = page.evaluate("camera.x")
    canvas.press("Shift+ArrowRight")
    assert page.evaluate("camera.x") == pytest.approx(left - 60)
    canvas.press("0")
    assert page.evaluate("camera.scale") == pytest.approx(page.evaluate("fitScale()"))
    canvas.press("Escape")
    assert page.evaluate("view.chosen") is None


def test_the_picture_moves_and_zooms_where_the_pointer_is(show, graph):
    page = show()
    x, y = at(page, 1)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    page.wait_for_function("camera.scale > 1.2 * fitScale()")
    assert at(page, 1) == pytest.approx((x, y), abs=1)
    page.mouse.down()
    page.mouse.move(x + 30, y - 20, steps=3)
    page.mouse.up()
    assert at(page, 1) == pytest.approx((x + 30, y - 20), abs=1)
    # A drag is no click.
    assert page.evaluate("view.chosen") is None
    page.get_by_role("button", name="fit").click()
    page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("camera.scale / fitScale()") == pytest.approx(1.3)
    # However far it is moved, some of it stays in sight.
    for _ in range(60):
        page.locator("#graph").press("Shift+ArrowLeft")
    assert page.evaluate("camera.x < byId('graph').clientWidth - 20")


def test_what_is_chosen_comes_into_sight(show, graph):
    page = show()
    for _ in range(7):
        page.get_by_role("button", name="Zoom in").click()
    page.get_by_label("search").fill("lily")
    for place in (1, len(graph) - 2):
        page.locator("#found .name", has_text=node_name(graph, place)).first.click()
        x, y = at(page, place)
        box = page.locator("#stage").bounding_box()
        assert box["x"] < x < box["x"] + box["width"]
        assert box["y"] < y < box["y"] + box["height"]


def test_the_slider_says_how_many_edges_are_drawn(show, graph):
    page = show()
    total = int((graph.edges != 0).sum())
    slider, said = page.locator("#edges"), page.locator("#edges-said")
    slider.press("End")
    assert said.inner_text() == f"{total} of {total} edges, 100% of influence"
    many = ink(page)
    slider.press("Home")
    assert said.inner_text() == f"0 of {total} edges, 0% of influence"
    assert slider.get_attribute("aria-valuetext") == said.inner_text()
    assert ink(page) < 0.8 * many


def ink(page):
    """Size of the lower canvas as a compressed picture, once it is drawn."""
    return page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>
          done(byId("graph").toDataURL().length))))"""
    )


def test_the_search_finds_tokens_and_features(show, graph):
    page = show()
    search, found = page.get_by_label("search"), page.locator("#found .name")
    search.fill("lily")
    assert node_name(graph, len(graph) - 2) in found.all_inner_texts()
    assert node_name(graph, 1) in found.all_inner_texts()
    search.fill("L1 #7")
    assert found.all_inner_texts() == [node_name(graph, graph.places[Node("feature", 1, 2, 7)])]
    search.press("Enter")
    assert page.locator("#node-name").inner_text() == found.inner_text()
    search.fill("7")
    assert all(" feature 7 " in name for name in found.all_inner_texts())
    assert found.count() == 2
    search.fill("nowhere")
    assert page.locator("#found-said").inner_text() == "no node"


def strongest_path(graph, place, end):
    """The largest product of shares from a node to another, and its nodes, by trying all paths."""
    shares = input_shares(graph.edges)
    if place == end:
        return 1.0, [end]
    found = [
        (shares[target, place].item() * rest, [place, *path])
        for target in (graph.edges[:, place] != 0).nonzero()[:, 0].tolist()
        for rest, path in [strongest_path(graph, target, end)]
    ]
    return max(found, default=(0.0, []))


@pytest.mark.parametrize("word", [" Lily", " Tim"])
def test_the_path_to_an_output_is_the_strongest(show, graph, word):
    page = show()
    end = len(graph) - 2 + graph.logit_words.index(word)
    page.locator("#logit").select_option(index=graph.logit_words.index(word))
    place = graph.places[Node("feature", 0, 0, 5)]
    page.get_by_label("search").fill("L0 #5")
    page.locator("#found .name").first.click()
    product, path = strongest_path(graph, place, end)
    assert len(path) > 2
    steps = page.locator(".path li").all_inner_texts()
    assert len(steps) == len(path)
    for step, wanted in zip(steps, path, strict=True):
        assert step.startswith(node_name(graph, wanted))
    assert f"{100 * product:.2g}" in page.locator("#node").inner_text().split("product is")[1]
    drawn = page.evaluate("view.path.map((edge) => [source[edge], target[edge]])")
    assert drawn == [list(pair) for pair in pairwise(path)]
    page.get_by_label("path to", exact=True).uncheck()
    assert page.evaluate("view.path.length") == 0
    clear(page)
    page.get_by_role("button", name="Pin the path").click()
    assert pinned(page) == [node_name(graph, each) for each in path]


def test_errors_can_be_hidden(show, graph):
    page = show()
    place = graph.places[Node("error", 1, 1, 0)]
    page.get_by_label("error nodes").uncheck()
    page.mouse.move(*at(page, place))
    assert page.evaluate("view.hovered") is None
    # Found by the search, they are shown again.
    page.get_by_label("search").fill("L1")
    page.locator("#found .name", has_text="error").first.click()
    assert page.get_by_label("error nodes").is_checked()


def test_an_output_tells_its_heads_and_why_they_attend(show, graph):
    reason = Reason(3.5, (("token", 1.0), ("L0 feature 5", -0.25)), (("L0H1", 0.5),))
    edges = [
        HeadEdge(Head(1, 3), 2, 1, 0.75, 0.4, reason),
        HeadEdge(Head(0, 2), 2, 2, -0.5, 1.0),
    ]
    page = show(extras=Extras(head_edges={graph.nodes[-1]: edges}))
    assert "What heads bring it" not in page.locator("#node").inner_text()
    page.mouse.move(*at(page, len(graph) - 1))
    (table,) = page.locator("#node table").all()[1:]
    rows = table.locator("tbody tr").all_inner_texts()
    assert [line.strip() for line in rows[0].splitlines() if line.strip()] == [
        "L1H3",
        "at “␣likes” (2), 40% of its attention on “␣Lily” (1)",
        "as it scores +3.50 over the other keys",
        "asked for by token +1.00, L0 feature 5 −0.25",
        "offered by L0H1 +0.50",
        "+0.75",
    ]
    assert "as it scores" not in rows[1]
    assert rows[1].strip().endswith("−0.50")


@pytest.mark.parametrize(("size", "scheme"), [("screen", "light"), ("telephone", "dark")])
def test_hostile_tokens_are_text_and_nothing_is_cut_off(show, size, scheme):
    graph = replace(made_graph((HOSTILE,) * 3, (HOSTILE, f"{HOSTILE}2")), model=HOSTILE)
    effects = {(1, 7): LogitEffects(((5, 2.0),), ((6, -1.0),))}
    contexts = {(1, 7): [Context((5,) * 20, (1.0,) * 20)]}
    heads = {(graph.nodes[0], graph.nodes[-2]): [(HOSTILE, 1.0)]}
    extras = Extras((), heads, {}, contexts, effects, lambda token: HOSTILE)
    page = show(graph, extras, viewport=SIZES[size], color_scheme=scheme)
    page.get_by_label("search").fill("L1 #7")
    page.locator("#found .name").first.click()
    page.get_by_role("button", name="Pin to the subgraph").click()
    page.locator("#logit").select_option(index=1)
    page.mouse.move(*at(page, 1))
    assert page.locator("img").count() == 0
    assert HOSTILE.replace(" ", "␣") in page.locator("#node-name").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]


def test_a_telephone_begins_where_the_outputs_are(show):
    graph = made_graph(tuple(f" w{pos}" for pos in range(24)), features=1)
    page = show(graph, viewport=SIZES["telephone"])
    assert page.evaluate("camera.scale") > page.evaluate("fitScale()")
    x, y = at(page, len(graph) - 2)
    box = page.locator("#stage").bounding_box()
    assert box["x"] < x < box["x"] + box["width"]
    assert box["y"] < y < box["y"] + box["height"]


def test_the_colours_follow_the_scheme(show):
    page = show()
    colour = "inks.feature"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(before) => {colour} !== before", arg=light)


def test_nothing_is_cut_off_on_paper(show):
    page = show(color_scheme="dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1017})
    page.wait_for_function("inks.paper === '#ffffff'")
    over = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
          .filter((each) => each.getBoundingClientRect().right > 688.5 && each.checkVisibility())
          .map((each) => `${each.tagName} ${each.id} ${each.getAttribute("class")}`)"""
    )
    assert over == []


def test_thousands_of_edges_are_drawn_within_a_few_frames(show):
    graph = made_graph(tuple(f" w{pos}" for pos in range(12)), features=12)
    assert (graph.edges != 0).sum() > 12_000
    page = show(graph)
    page.locator("#edges").press("End")
    times = page.evaluate(
        """() => Array.from({ length: 9 }, () => {
          const start = performance.now();
          drawAll();
          return performance.now() - start;
        }).sort((one, other) => one - other)"""
    )
    assert times[4] < 150  # ms


def test_a_graph_without_edges_can_be_looked_at(show):
    graph = made_graph(features=0)
    page = show(replace(graph, edges=torch.zeros_like(graph.edges), values=graph.biases))
    assert page.locator("#edges-said").inner_text() == "0 of 0 edges, 0% of influence"
    page.locator("#graph").press("ArrowDown")
    assert page.locator("#node").inner_text().count("None in this graph.") >= 2
