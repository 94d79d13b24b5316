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
from circuitkeep.compare.report import Transfer

NAN = float("nan")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser makes of a page: elements, scripts, and the text that it shows."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.scripts, self.styles, self.text = [], [], [], []
        self.cells = []
        self.open, self.inside = None, False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        if tag == "tr":
            self.cells.append([])
        elif tag in ("th", "td"):
            self.cells[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.open = None
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1][-1] += data
        kinds = {"script": self.scripts, "style": self.styles}
        kinds.get(self.open, self.text).append(data)

    def rows(self):
        """The cells of every line of every table, as text."""
        return [[" ".join(cell.split()) for cell in row] for row in self.cells if row]

    def charts(self):
        return json.loads(self.scripts[0])["charts"]


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
                    result,
                    role_scores=renamed(result.role_scores),
                    scores=renamed(result.scores),
                    moved=renamed(result.moved),
                    rankings=renamed(result.rankings),
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
                contribution=HOSTILE,
            )
            for name, circuit in report.circuits.items()
        },
        created=HOSTILE,
        prompts=tuple(
            replace(each, text=HOSTILE, tokens=(HOSTILE,) * len(each.tokens))
            for each in report.prompts
        ),
        replicates=tuple(
            replace(
                group,
                name=HOSTILE + group.name,
                circuits=renamed(group.circuits),
                losses=renamed(group.losses),
            )
            for group in report.replicates
        ),
        transfer=report.transfer
        and Transfer(
            tuple(
                replace(each, name=HOSTILE + each.name, probe=HOSTILE)
                for each in report.transfer.columns
            ),
            tuple(
                replace(row, name=HOSTILE, trained_on=HOSTILE, shares=renamed(row.shares))
                for row in report.transfer.rows
            ),
        ),
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )


def test_loads_nothing(either):
    source = render_page(either)
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
    _, *scripts = page.scripts
    assert len(scripts) == 4
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "script-src 'unsafe-inline'" not in policy


@pytest.fixture(params=["report", "trajectory", "everything"])
def either(request):
    """A report of each kind: their pages differ."""
    return request.getfixturevalue(request.param)


def test_hostile_texts_are_shown_not_run(either):
    clean, page = Page(render_page(either)), Page(render_page(hostile(either)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert len(page.scripts) == 5
    shown = "".join(page.text)
    # Once in each place that shows a name or a free text.
    for text in ("unregularized", "repeats", "induction", "L0H2"):
        assert text in shown
    assert shown.count(HOSTILE) > 30
    # At the head of its lines in each table: of retention, and for each of two roles of the heads
    # that moved (no base there) and of the scores.
    names = [row[0] for row in page.rows() if row[0].startswith(HOSTILE)]
    # Of replicates three kinds and two losses of two groups, and two rows by two probes.
    more = 2 * (3 + 2) + 2 * 2 if either.prompts else 0
    assert len(names) == 4 + 2 * (3 + 4) + more
    assert "49" not in shown.replace(HOSTILE, "").split()


def test_hostile_labels_reach_plotly_escaped(either):
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

    collect(Page(render_page(hostile(either))).charts())
    markup = {tag for text in labels for tag in re.findall(r"<[^>]*>", text)}
    assert {"<br>"} < markup <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}
    assert any("&lt;" in text for text in labels)


def test_charts_are_valid_plotly(either):
    for chart in Page(render_page(either)).charts():
        del chart["name"]
        for frame in chart.get("frames", []):
            # What the page puts into the layout.
            frame["data"][0].pop("annotations", None)
        plain = re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(chart))
        go.Figure(json.loads(plain))


def test_every_colour_is_in_the_stylesheet(either):
    page = Page(render_page(either))
    (style,) = page.styles
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page.scripts[0] + style))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", style))


def test_every_place_has_its_chart(report):
    page = Page(render_page(report))
    places = [attributes for _, attributes in page.elements if "data-chart" in attributes]
    # Retention, two prices, capability, and a map for each of two roles of four models.
    assert [int(place["data-chart"]) for place in places] == list(range(12))
    assert len(page.charts()) == 12
    assert all(place["role"] == "img" and place["aria-label"] for place in places)


def test_headings_skip_no_level(either):
    levels = [
        int(tag[1]) for tag, _ in Page(render_page(either)).elements if tag in ("h1", "h2", "h3")
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
def test_page_without(either, missing):
    report = either
    if missing == "checkpoints":
        report = replace(report, checkpoints=(), steps=())
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


def test_who_does_the_job_stands_in_a_table(report):
    rows = Page(render_page(report)).rows()
    assert ["unregularized", "L0H2 0.95 → 0.33", "L0H3 0.05 → 0.05", "−0.30", "35%"] in rows
    lost = "L1H0 0.95 → 0.33L1H3 0.95 → 0.33"
    assert ["unregularized", lost, "L0H3 0.05 → 0.05", "−0.30", "35%"] in rows
    assert rows.count(["regularized", "none", "none", "0.94", "97%"]) == 2
    assert [row for row in rows if row[-2:] == ["top 2 kept", "top 10 kept"]] == []


def test_top_10_is_shown_where_there_are_more_heads(report):
    def many(checkpoint):
        result = checkpoint.circuits["induction"]
        found = {role: replace(each, top_10=0.5) for role, each in result.rankings.items()}
        return replace(checkpoint, circuits={"induction": replace(result, rankings=found)})

    rows = Page(
        render_page(replace(report, checkpoints=tuple(map(many, report.checkpoints))))
    ).rows()
    assert [row[-2:] for row in rows if "rank correlation" in row] == [
        ["top 1 kept", "top 10 kept"],
        ["top 2 kept", "top 10 kept"],
    ]
    assert ["regularized", "none", "none", "0.94", "97%", "50%"] in rows


def test_contributions_stand_below_the_scores(report):
    rows = Page(render_page(report)).rows()
    assert ["regularized", "0.92 +7.10 logits", "0.92 +7.10 logits"] in rows


def test_a_slider_goes_over_the_base_and_every_step(trajectory):
    page = Page(render_page(trajectory))
    sliders = [each for tag, each in page.elements if tag == "input"]
    places = {each["data-chart"] for _, each in page.elements if "data-chart" in each}
    labels = {each["for"] for tag, each in page.elements if tag == "label"}
    assert len(sliders) == 2  # one per role
    for slider in sliders:
        assert (slider["type"], slider["min"], slider["max"], slider["value"]) == (
            *("range", "0", "3", "3"),
        )
        assert slider["id"] in labels
        assert slider["data-frames"] in places
        chart = page.charts()[int(slider["data-frames"])]
        assert [f["name"] for f in chart["frames"]] == ["base", "step 100", "step 200", "step 300"]
    # Frames in place of maps: retention, prices, capability, and one map per role.
    assert len(places) == len(page.charts()) == 1 + 2 + 1 + 2
