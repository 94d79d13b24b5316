"""What the study of graphs makes of its figures."""

import math
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import study_graphs
        import study_graphs_report
    finally:
        sys.path.remove(str(SCRIPTS))
    return study_graphs, study_graphs_report


def record(kinds, effects, logits=(3, 5)):
    return {"kinds": kinds, "logits": list(logits), "effects": {"graph": effects}}


def test_effects_are_chosen_by_kind_and_taken_among_the_graphs_logits(study):
    _, report = study
    records = [
        record(["a", "b"], [[1.0, 3.0], [5.0, 5.0]]),
        record(["b"], [[2.0]], logits=[3]),
    ]
    assert [x.tolist() for x in report.effects_of(records, "graph")] == [
        [[1.0, 3.0], [5.0, 5.0]],
        [[2.0]],
    ]
    assert [x.tolist() for x in report.effects_of(records, "graph", ["b"])] == [[[5.0, 5.0]], [[2]]]
    among = report.effects_of(records, "graph", None, among=True)
    assert [x.tolist() for x in among] == [[[-1.0, 1.0], [0.0, 0.0]]]


def test_intervals_of_pairs_draw_prompts(study):
    """All the spread comes from prompt 0: a draw without it, or with it alone, tells so."""
    _, report = study
    found = [{"pair": (i, j), "nodes": float(i == 0)} for i in range(6) for j in range(i + 1, 6)]
    mean, low, high = (float(x.strip("[],")) for x in report.pair_cell(found, "nodes").split())
    assert mean == pytest.approx(5 / 15, abs=1e-3)
    assert low == 0
    assert high > 0.6
    same = report.pair_cell([{**one, "nodes": 0.5} for one in found], "nodes")
    assert same == "0.500 [0.500, 0.500]"
    no_prompts = [{"pair": (), "nodes": value} for value in (0.1, 0.3, math.nan)]
    assert report.pair_cell(no_prompts[:2], "nodes") == "0.200 (0.100 to 0.300)"


def test_what_is_kept_is_not_made_again_and_belongs_to_its_weights(study, tmp_path):
    script, _ = study
    made = []

    def make():
        made.append(1)
        return {"x": [1.5]}

    path = tmp_path / "a" / "0.json"
    assert script.kept(path, make) == script.kept(path, make) == {"x": [1.5]}
    assert len(made) == 1
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert script.fingerprint(first) == script.fingerprint(first)
    assert script.fingerprint(first) != script.fingerprint(second)
    assert script.fingerprint(first, second) != script.fingerprint(second, first)
