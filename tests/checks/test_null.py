from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.checks.evidence import gather, make_rows
from circuitkeep.checks.null import null_levels, score_null
from circuitkeep.checks.pin import pinned_plan


@pytest.fixture
def plan(wired_circuit):
    tests = {"rows": 16, "seeds": [1, 2]}
    return pinned_plan(replace(wired_circuit, tests=tests), base=True, faithfulness=True)


def test_the_wired_circuit_is_far_above_its_null(wired_model, plan):
    backend = attach(wired_model)
    rows = make_rows(plan, backend, None)
    before = {name: value.clone() for name, value in wired_model.state_dict().items()}
    now = gather(plan, backend, rows)
    found = null_levels(plan, backend, rows[0], now, now, twins=4)
    assert found.keys() == {check.name for check in plan.checks} - {"no_migration"}
    assert all(torch.equal(v, before[k]) for k, v in wired_model.state_dict().items())
    for role in plan.circuit.roles:
        assert found[f"score[{role.name}]"] == found[f"replicates[{role.name}]"]
        # Even attention over 14 places is .07 and more; no head of a twin is sharp for long.
        assert 0.05 < found[f"score[{role.name}]"] < 0.8
    assert found["causal"] == found["faithfulness"] == found["retention[causal]"] == 0
    assert 1 / 24 <= found["behaviour"] < 0.5
    assert found["retention[behaviour]"] == pytest.approx(found["behaviour"], rel=1e-3)
    mean = (found["score[previous-token]"] + found["score[induction]"]) / 2
    assert found["retention[identity]"] == pytest.approx(mean, rel=0.02)


def test_the_null_is_the_higher_of_twins_and_other_heads(wired_model, plan):
    backend = attach(wired_model)
    now = gather(plan, backend, make_rows(plan, backend, None))
    scores = now.measured.scores["induction"]
    low, high = torch.full_like(scores, 0.01), torch.full_like(scores, 0.4)
    own = score_null(plan, "induction", now, [low])
    named = scores[:, 1].nanmean(0)
    others = named[[0, 1, 3]].max().item()
    assert others - 1e-4 < own < 0.5, "heads that are not named, and not the one that is"
    assert score_null(plan, "induction", now, [high]) == pytest.approx(0.4, abs=1e-3)


def test_two_twins_are_needed(wired_model, plan):
    backend = attach(wired_model)
    rows = make_rows(plan, backend, None)
    now = gather(plan, backend, rows)
    with pytest.raises(ValueError, match="at least 2 random-weight twins, got 1"):
        null_levels(plan, backend, rows[0], now, now, twins=1)
