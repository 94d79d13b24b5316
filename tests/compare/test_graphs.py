"""Graphs of answers in a comparison: of models, and how they are shown."""

import csv
import io
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from circuitkeep.capture.models import build_embedded, save_model
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare.graphs import GraphQuestion
from circuitkeep.compare.long_table import to_csv
from circuitkeep.compare.measure import compare
from circuitkeep.compare.page import render_page
from circuitkeep.compare.report import GraphResult
from circuitkeep.compare.terminal import print_report
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig
from circuitkeep.transcoders.storage import save_transcoder

CIRCUIT = Circuit(
    "induction",
    (Role("induction", (Head(1, 0), Head(1, 2))),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]},
    "accuracy",
    "test",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("same", 0), ("other", 1)):
        save_model(build_embedded(seed), folder / name)
    torch.manual_seed(0)
    transcoder = CrossLayerTranscoder(TranscoderConfig(2, 64, 30, "topk", 4, reads="normalized"))
    with torch.no_grad():
        for decoders in transcoder.W_dec:
            decoders.normal_(std=0.1)
    save_transcoder(transcoder, folder / "clt", {})
    save_transcoder(CrossLayerTranscoder(TranscoderConfig(3, 8, 4)), folder / "another", {})
    return folder


@pytest.mark.parametrize("transcoder", [None, "clt"])
def test_a_copy_shares_all_and_another_little(models, transcoder):
    question = GraphQuestion(4, transcoder and models / transcoder)
    report = compare(
        models / "base",
        {"same": models / "same", "other": models / "other"},
        [CIRCUIT],
        rows=6,
        graphs=question,
    )
    base, same, other = (each.graphs["induction"] for each in (report.base, *report.checkpoints))
    assert base.shared == same.shared == pytest.approx(1)
    assert same.interval == pytest.approx((1, 1))
    assert same.rows == 4
    assert 0 < base.other_prompts < 0.9
    assert other.shared < 0.9
    assert other.interval[0] <= other.shared <= other.interval[1]
    assert report.graph_parts == question.parts
    if transcoder:
        assert report.base.explained == report.checkpoints[0].explained
        assert report.checkpoints[1].explained != report.base.explained
    else:
        assert report.base.explained is None


def test_not_asked_for(models):
    report = compare(models / "base", {"same": models / "same"}, [CIRCUIT], rows=6)
    assert report.base.graphs == {}
    assert report.graph_parts == ""


def test_mistakes(models):
    with pytest.raises(ValueError, match="graphs of 1 prompts"):
        GraphQuestion(1)
    with pytest.raises(FileNotFoundError, match="no folder of a transcoder"):
        GraphQuestion(4, models / "nowhere")
    with pytest.raises(ValueError, match="3 layers"):
        compare(
            models / "base",
            {"same": models / "same"},
            [CIRCUIT],
            rows=6,
            graphs=GraphQuestion(4, models / "another"),
        )


@pytest.fixture
def traced(report):
    def with_graphs(checkpoint, shared):
        result = GraphResult(shared, (shared - 0.05, shared + 0.04), 0.21, 8)
        return replace(checkpoint, graphs=dict.fromkeys(report.circuits, result), explained=0.81)

    shares = zip(report.checkpoints, (0.7, 0.4, 0.9), strict=True)
    return replace(
        report,
        base=with_graphs(report.base, 1.0),
        checkpoints=tuple(with_graphs(*pair) for pair in shares),
        graph_parts="features",
    )


def test_shown(traced, report):
    console = Console(file=StringIO(), width=120)
    print_report(traced, console)
    assert "40% [35, 44]" in console.file.getvalue()
    assert "21%" in console.file.getvalue()
    page = render_page(traced)
    assert "[35, 44]" in page
    assert "How answers come about" in page
    assert "How answers come about" not in render_page(report)
    rows = list(csv.DictReader(io.StringIO(to_csv(traced))))
    shared = [row for row in rows if row["quantity"] == "graph_shared"]
    assert [float(row["value"]) for row in shared] == [1.0, 0.7, 0.4, 0.9]
    assert float(shared[1]["low"]) == pytest.approx(0.65)
