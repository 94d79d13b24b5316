import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from circuitkeep.compare import charts
from circuitkeep.compare.page import render_page

NAN = float("nan")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser makes of a page: elements, scripts, and the text that it shows."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.scripts, self.styles, self.text = [], [], [], []
        self.open = None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        kinds = {"script": self.scripts, "style": self.styles}
        kinds.get(self.open, self.text).append(data)

    def charts(self):
        return json.loads(self.scripts[0])


def hostile(report):
    """The same report, with a hostile text before every name and in every free text."""

    def renamed(mapping):
        return {HOSTILE + key: value for key, value in mapping.items()}

    def checkpoint(each):
        return replace(
            each,
            name=HOSTILE + each.name,
            path=HOSTILE,
            capability=renamed(each.capability),
            circuits={
                HOSTILE + name: replace(
                    result, role_scores=renamed(result.role_scores), scores=renamed(result.scores)
                )
                for name, result in each.circuits.items()
            },
        )

    return replace(
        report,
        base=checkpoint(report.base),
        checkpoints=tuple(map(checkpoint, report.checkpoints)),
        circuits={
            HOSTILE + name: replace(
                circuit,
                roles=renamed(circuit.roles),
                source=HOSTILE,
                probe=HOSTILE,
                ablation=HOSTILE,
            )
            for name, circuit in report.circuits.items()
        },
        created=HOSTILE,
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )


def test_loads_nothing(report):
    source = render_page(report)
    page = Page(source)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not any(re.search(r"@import|url\(", style) for style in page.styles)
    own = source.replace(get_plotlyjs(), "")
    assert "://" not in own
    assert len(source.encode()) < 10_000_000


def test_policy_runs_only_the_pages_own_scripts(report):
    page = Page(render_page(report))
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    _, plotly, own = page.scripts
    for script in (plotly, own):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_hostile_texts_are_shown_not_run(report):
    clean, page = Page(render_page(report)), Page(render_page(hostile(report)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert len(page.scripts) == 3
    shown = "".join(page.text)
    # Once in each place that shows a name or a free text.
    for text in ("unregularized", "repeats", "induction", "L0H2"):
        assert text in shown
    assert shown.count(HOSTILE) > 30
    assert "49" not in shown.replace(HOSTILE, "").split()


def test_hostile_labels_reach_plotly_escaped(report):
    labels = []

    def collect(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                collect(item, name)
        elif isinstance(value, list):
            for item in value:
                collect(item, key)
        elif isinstance(value, str):
            labels.append(value)

    collect(Page(render_page(hostile(report))).charts())
    markup = {tag for text in labels for tag in re.findall(r"<[^>]*>", text)}
    assert markup == {"<b>", "</b>", "<br>"}
    assert any("&lt;" in text for text in labels)


def test_charts_are_valid_plotly(report):
    for chart in Page(render_page(report)).charts():
        plain = re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(chart))
        go.Figure(json.loads(plain))


def test_every_colour_is_in_the_stylesheet(report):
    page = Page(render_page(report))
    (style,) = page.styles
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page.scripts[0] + style))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", style))


def test_every_place_has_its_chart(report):
    page = Page(render_page(report))
    places = [attributes for _, attributes in page.elements if "data-chart" in attributes]
    # Retention, capability, and a map for each of two roles of four models.
    assert [int(place["data-chart"]) for place in places] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(page.charts()) == 10
    assert all(place["role"] == "img" and place["aria-label"] for place in places)


def test_headings_skip_no_level(report):
    levels = [
        int(tag[1]) for tag, _ in Page(render_page(report)).elements if tag in ("h1", "h2", "h3")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_says_how_it_was_measured(report):
    shown = " ".join("".join(Page(render_page(report)).text).split())
    for text in (
        "regularized keeps 99% of the induction behaviour (identity 97%, causal 98%)",
        "RepeatedTokens(length=32)",
        "256 rows, seed 7",
        "circuitkeep scan",
        "circuitkeep compare base=models/base",
        "0.1.0",
        "other heads took over",
        "−3.788",
        "[92, 104]",
    ):
        assert text in shown


def test_undefined_retention_is_not_available(report):
    result = replace(
        report.checkpoints[0].circuits["induction"],
        causal_retention=NAN,
        causal_interval=(NAN, NAN),
    )
    checkpoint = replace(report.checkpoints[0], circuits={"induction": result})
    page = Page(render_page(replace(report, checkpoints=(checkpoint,))))
    assert "n/a" in page.text
    assert "NaN" not in page.scripts[0]
    identity, causal, _ = page.charts()[0]["data"]
    assert (len(identity["x"]), len(causal["x"])) == (1, 0)


@pytest.mark.parametrize("missing", ["checkpoints", "capability"])
def test_page_without(report, missing):
    if missing == "checkpoints":
        report = replace(report, checkpoints=())
    else:
        strip = [replace(each, capability={}) for each in (report.base, *report.checkpoints)]
        report = replace(report, base=strip[0], checkpoints=tuple(strip[1:]))
    page = Page(render_page(report))
    places = [int(each["data-chart"]) for _, each in page.elements if "data-chart" in each]
    assert len(places) == len(set(places)) > 0
    assert set(places) <= set(range(len(page.charts())))


def test_score_map_names_head_score_and_base(report):
    base, damaged = (each.circuits["induction"] for each in (report.base, report.checkpoints[0]))
    chart = charts.score_chart(damaged, base, "induction")
    (heatmap,) = chart["data"]
    assert heatmap["text"][1][0] == "L1H0: .33 (base .95)"
    assert heatmap["text"][0][0] == "L0H0: .05 (base .05)"
    assert (heatmap["zmin"], heatmap["zmax"]) == (0, 1)
    corners = [(shape["x0"], shape["y0"]) for shape in chart["layout"]["shapes"]]
    assert corners == [(-0.5, 0.5), (2.5, 0.5)]


def test_retention_chart_places_value_and_interval(report):
    identity, causal, behaviour = charts.retention_chart(report, "induction")["data"]
    assert identity["x"] == [0.35, 0.99, 0.97]
    assert causal["error_x"]["array"] == pytest.approx([0.06] * 3)
    assert causal["error_x"]["arrayminus"] == pytest.approx([0.06] * 3)
    assert behaviour["y"][0] > causal["y"][0] > identity["y"][0]


def test_capability_chart_is_the_difference_to_the_base(report):
    (bars,) = charts.capability_chart(report)["data"]
    assert bars["x"][:2] == pytest.approx([0.213 - 4.012, 3.871 - 1.204])


def test_long_labels_are_shortened_in_the_middle():
    assert charts.label("a" * 72) == "a" * 72
    short = charts.label("a" * 100 + "z" * 100)
    assert len(short) <= 72
    assert (short[0], short[-1]) == ("a", "z")
