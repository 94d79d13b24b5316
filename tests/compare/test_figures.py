"""Figures as files."""

import json
import shutil
from importlib import util

import pytest

from circuitkeep.compare import figures
from circuitkeep.compare.figures import check_figures, drawn, every_chart, light_colours

pytest.importorskip("kaleido")


def test_every_figure_has_a_name_of_its_own_and_no_colour_by_name(everything):
    charts = list(every_chart(everything))
    names = [name for name, _ in charts]
    assert len(set(names)) == len(names)
    # Retention, two prices, capability, maps of two roles of four models, three kinds of what
    # transfers, and three of each of three named heads.
    assert len(names) == 1 + 2 + 1 + 2 * 4 + 3 + 3 * 3
    assert {"transfer-causal", "attention-prompt-1-L1H3-difference"} < set(names)
    colours = light_colours()
    assert colours["--paper"] == "#ffffff"
    assert colours["--causal"] == "#b8500b"
    for _, chart in charts:
        assert "var(" not in json.dumps(drawn(chart, colours))


def test_of_a_slider_the_base_and_the_last_step_are_figures(trajectory):
    names = [name for name, _ in every_chart(trajectory)]
    assert [n for n in names if "scores" in n] == [
        *("induction-previous-token-scores-base", "induction-previous-token-scores-step-300"),
        *("induction-induction-scores-base", "induction-induction-scores-step-300"),
    ]


def test_what_is_missing_is_said_before_anything_is_measured(monkeypatch):
    with pytest.raises(ValueError, match="figures='pdf': must be svg, png, or null"):
        check_figures("pdf")
    from choreographer.browsers.chromium import Chromium

    monkeypatch.setattr(Chromium, "find_browser", lambda **_: None)
    with pytest.raises(ValueError, match=r"apt install chromium.*BROWSER_PATH"):
        check_figures("svg")
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'circuitkeep\[figures\]'"):
        check_figures("png")
    assert util.find_spec("kaleido") is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="this machine has no chromium")
def test_figures_are_written_and_hold_what_they_show(report, tmp_path):
    paths = figures.write_figures(report, tmp_path, "svg")
    assert {path.suffix for path in paths} == {".svg"}
    retention = tmp_path / "figures/induction-retention.svg"
    assert retention in paths
    text = retention.read_text("utf-8")
    assert text.startswith("<svg")
    for shown in ("unregularized", "patterns-only", "behaviour"):
        assert shown in text
    (png,) = [p for p in figures.write_figures(report, tmp_path, "png") if "retention" in p.name]
    assert png.read_bytes().startswith(b"\x89PNG")
