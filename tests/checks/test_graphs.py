"""The check of graphs: the same model passes, one that answers in another way fails."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.capture.models import save_model
from circuitkeep.checks import Examination, Verdict, load_plan
from circuitkeep.checks.graphs import GraphTest, graph_evidence, read_graph_test
from circuitkeep.checks.pin import pinned_plan
from circuitkeep.circuits import CircuitError, save_circuit
from circuitkeep.graphs.answers import overlaps
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig
from circuitkeep.transcoders.storage import save_transcoder

ROWS = 4


@pytest.fixture
def transcoder():
    torch.manual_seed(0)
    made = CrossLayerTranscoder(TranscoderConfig(2, 80, 40, "topk", 6, reads="normalized"))
    with torch.no_grad():
        for decoders in made.W_dec:
            decoders.normal_(std=0.1)
    return made


@pytest.fixture
def folder(tmp_path, wired_model, wired_circuit, transcoder):
    """A model, one that reads and attends otherwise, and a transcoder."""
    save_model(wired_model, tmp_path / "base")
    damaged = copy.deepcopy(wired_model)
    with torch.no_grad():
        for layer in damaged.model.layers:
            layer.self_attn.q_proj.weight.neg_()
        damaged.model.embed_tokens.weight.copy_(damaged.model.embed_tokens.weight.roll(1, 0))
    save_model(damaged, tmp_path / "damaged")
    save_transcoder(transcoder, tmp_path / "clt", {})
    write(tmp_path, wired_circuit, {"overlap": 0.6, "rows": ROWS})
    return tmp_path


def write(folder, circuit, graph):
    tests = {"rows": 12, "seeds": [1, 2], "graph": graph}
    save_circuit(replace(circuit, tests=tests), folder / "wired.circuit.yaml")


def judged(folder, model):
    plan = load_plan(folder / "wired.circuit.yaml", True)
    examination = Examination([plan], folder / model, folder / "base")
    check = next(check for check in plan.checks if check.kind == "graph")
    return examination.judge(plan, check), examination, plan


@pytest.mark.parametrize("where", [None, "clt"])
def test_the_same_and_another(folder, wired_circuit, where):
    write(folder, wired_circuit, {"overlap": 0.6, "rows": ROWS, "transcoder": where})
    same, examination, plan = judged(folder, "base")
    assert same.verdict == Verdict.PASSED
    assert same.value == pytest.approx(1)
    assert same.rows == 2 * ROWS
    traced = examination.evidence(plan).graphs
    assert [graph is not None for graph in traced] == 2 * [*[True] * ROWS, *[False] * (12 - ROWS)]
    for graph in traced[:ROWS]:
        assert sum(graph.values()) == pytest.approx(1, abs=1e-4)
    other, *_ = judged(folder, "damaged")
    assert other.verdict == Verdict.FAILED
    assert other.value < 0.5


def test_overlap_by_hand():
    a, b = ("feature", 0, 1, 2), ("feature", 1, 1, 2)
    found = overlaps([{a: 0.75, b: 0.25}, None, {a: 1.0}], [{a: 0.5, b: 0.5}, {a: 1.0}, {b: 1.0}])
    assert found[0].item() == pytest.approx((0.5 + 0.25) / (0.75 + 0.5))
    assert math.isnan(found[1])
    assert found[2].item() == 0


def test_left_out_without_a_base(folder):
    plan = load_plan(folder / "wired.circuit.yaml")
    assert plan.graph is None
    assert "graph" not in [check.kind for check in plan.checks]


def test_left_out_of_baselines(folder):
    plan = load_plan(folder / "wired.circuit.yaml", True)
    assert plan.graph is not None
    pinned = pinned_plan(plan.circuit, True)
    assert pinned.graph is None
    assert "graph" not in [check.kind for check in pinned.checks]


def test_a_transcoder_of_another_model(folder, wired_circuit):
    other = CrossLayerTranscoder(TranscoderConfig(3, 8, 4))
    save_transcoder(other, folder / "clt", {})
    write(folder, wired_circuit, {"overlap": 0.8, "transcoder": "clt"})
    with pytest.raises(ValueError, match="3 layers of width 8"):
        judged(folder, "base")


def test_no_transcoder_where_one_should_be(folder, wired_circuit):
    write(folder, wired_circuit, {"overlap": 0.8, "transcoder": "nowhere"})
    with pytest.raises(ValueError, match=r"yaml:\d+: tests.graph.transcoder: there is no folder"):
        load_plan(folder / "wired.circuit.yaml", True)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (0.5, "'graph' must map overlap, transcoder, rows to values, got 0.5"),
        ({"overlap": 0.5, "row": 4}, "unknown key 'row'; did you mean 'rows'"),
        ({"rows": 4}, "overlap must be a share .* got None"),
        ({"overlap": 0}, "overlap must be a share"),
        ({"overlap": 2}, "overlap must be a share"),
        ({"overlap": True}, "overlap must be a share"),
        ({"overlap": 0.5, "rows": 1}, "rows must be at least 2"),
        ({"overlap": 0.5, "transcoder": 3}, "transcoder must be a folder"),
    ],
)
def test_mistakes(wired_circuit, graph, message):
    with pytest.raises(CircuitError, match=message):
        read_graph_test(replace(wired_circuit, tests={"graph": graph}))


def test_not_asked_for(wired_circuit):
    assert read_graph_test(wired_circuit) is None
    assert read_graph_test(replace(wired_circuit, tests={"graph": None})) is None


def test_prompts_without_an_answer_are_not_traced(wired_model, wired_circuit):
    from circuitkeep.probes import build_probe
    from circuitkeep.probing import probe_context

    backend = attach(wired_model)
    batch = build_probe(wired_circuit.probe).batch(probe_context(backend), "held_out", 4, 0)
    kept = batch.answer_row >= 2
    fewer = replace(
        batch,
        answer_row=batch.answer_row[kept],
        answer_position=batch.answer_position[kept],
        answer=batch.answer[kept],
        distractor=None if batch.distractor is None else batch.distractor[kept],
    )
    found = graph_evidence(GraphTest(None, 2), backend, [fewer])
    assert [graph is not None for graph in found] == [False, False, True, True]
