import csv
import io
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from circuitkeep.compare.long_table import to_csv
from circuitkeep.compare.page import render_page
from circuitkeep.compare.tasks import columns, difference, figure
from circuitkeep.compare.terminal import print_report

NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture
def answered(report):
    def asked(checkpoint, accuracy):
        values = {"acc": accuracy, "acc_stderr": 0.034, "bleu": 12.5}
        return replace(checkpoint, tasks={"story_names": values, NAME: {"acc": accuracy / 2}})

    shares = (0.7, 0.6, 0.85)
    checkpoints = zip(report.checkpoints, shares, strict=True)
    return replace(
        report,
        base=asked(report.base, 0.95),
        checkpoints=tuple(asked(each, share) for each, share in checkpoints),
    )


def test_figures(answered):
    assert columns(answered) == [("story_names", "acc"), ("story_names", "bleu"), (NAME, "acc")]
    last = answered.checkpoints[-1]
    assert figure(last, ("story_names", "acc")) == "0.850 ± 0.034"
    assert figure(last, (NAME, "acc")) == "0.425"
    assert difference(last, answered.base, ("story_names", "acc")) == "-0.100"


def test_the_terminal(answered, report):
    def printed(shown):
        console = Console(file=StringIO(), width=120)
        print_report(shown, console)
        return console.file.getvalue()

    text = printed(answered)
    assert "0.850 ± 0.034 -0.100" in text
    assert "0.950 ± 0.034" in text
    assert "standard error" not in printed(report)


def test_the_page(answered, report):
    page = render_page(answered)
    assert "0.850 ± 0.034" in page
    assert NAME not in page
    assert "lm-evaluation-harness" not in render_page(report)


def test_the_long_table(answered):
    rows = list(csv.DictReader(io.StringIO(to_csv(answered))))
    found = {
        (row["checkpoint"], row["quantity"]): row["value"]
        for row in rows
        if row["of"] == "story_names"
    }
    assert found["base", "acc"] == "0.95"
    assert found["regularized", "acc_stderr"] == "0.034"
    assert len(found) == 12
