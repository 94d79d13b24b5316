import html
import re

from circuitkeep.watch.page import render_page

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}"


def without_plotly(page):
    """The page up to the last of its scripts, which is plotly's."""
    return page[: page.rindex("<script>")]


def test_a_runs_name_is_text(tmp_path):
    page = without_plotly(render_page(tmp_path / HOSTILE, 0.9))
    assert HOSTILE not in page
    assert "<img" not in page
    (shown,) = re.findall(r"<h1>(.*)</h1>", page)
    assert html.unescape(shown) == HOSTILE


def test_the_policy_lets_it_ask_its_own_server_and_nobody_else(tmp_path):
    (policy,) = re.findall(
        r'Content-Security-Policy" content="([^"]*)"', render_page(tmp_path, 1.0)
    )
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["script-src"].count("'sha256-") == 5
    assert "unsafe" not in rules["script-src"]


def test_every_colour_is_in_the_stylesheet(tmp_path):
    page = without_plotly(render_page(tmp_path, 0.9))
    known = set(re.findall(r"(--[\w-]+):", page)) | {f"--line-{n}" for n in range(8)}
    used = set(re.findall(r"var\((--[\w-]+)\)", page)) | set(
        re.findall(r'colour\("(--[\w-]+)"', page)
    )
    assert used - known == {"--height"}  # which the script sets
    assert len(set(re.findall(r"--line-\d", page))) == 8


def test_the_threshold_is_told(tmp_path):
    page = without_plotly(render_page(tmp_path, 0.85))
    assert "marked below 85%" in page
    assert '{"threshold":0.85}' in page
