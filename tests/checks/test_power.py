from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.checks.plan import read_plan
from circuitkeep.checks.power import measure_power
from circuitkeep.circuits import Head

SETTINGS = {"reseeds": 4, "directions": 2, "runs": 2, "calibration_rows": 16}


def plan_of(circuit, **tests):
    return read_plan(replace(circuit, tests={"rows": 16, "seeds": [1, 2], **tests}), base=True)


@pytest.fixture
def found(wired_model, wired_circuit):
    tests = {"score": {"induction": 0.5}, "causal": 0.01, "replicates": None, "no_migration": None}
    plan = plan_of(wired_circuit, **tests, behaviour=0.5, retention={"identity": None})
    before = {name: value.clone() for name, value in wired_model.state_dict().items()}
    told = []
    found = measure_power(
        plan,
        attach(wired_model),
        None,
        losses=[0.05, 0.9],
        tell=lambda done, total: told.append((done, total)),
        **SETTINGS,
    )
    assert all(torch.equal(v, before[k]) for k, v in wired_model.state_dict().items())
    assert told[-1] == (20, 20)
    return found


def test_damage_is_seen_by_what_it_damages(found):
    assert found.rows == 32
    assert set(found.false_alarms.values()) == set(found.inconclusive.values()) == {0}
    qk, ov = found.levels["qk"], found.levels["ov"]
    for levels in (qk, ov):
        assert [level.loss for level in levels] == [0.05, 0.9]
        assert [level.runs for level in levels] == [4, 4]
        for level in levels:
            assert level.lost == pytest.approx(level.loss, abs=0.011)
            assert level.kept["causal"] == pytest.approx(1 - level.loss, abs=0.1)
        assert levels[0].scale < levels[1].scale
        assert levels[0].failed["retention[causal]"] == 0
        assert levels[1].failed["retention[causal]"] == 4
        assert levels[1].failed["causal"] == 0, "a threshold that is next to 0"
    assert qk[1].kept["identity"] < 0.8
    assert found.detected["qk"]["causal"].loss is None
    for kind in ("qk", "ov"):
        assert 0.05 < found.detected[kind]["retention[causal]"].loss <= 0.9


def test_heads_without_an_effect_cannot_lose_it(wired_model, wired_circuit):
    heads = {role.name: [Head(role.heads[0].layer, 0)] for role in wired_circuit.roles}
    idle = plan_of(wired_circuit.with_heads(heads, "idle"), causal=0.0)
    with pytest.raises(ValueError, match="no effect that damage could lower"):
        measure_power(idle, attach(wired_model), None, **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": 1}, "directions=1"),
        ({"runs": 3}, "no more than the draws of rows of the unchanged model, reseeds=4"),
        ({"losses": []}, "losses must be shares above 0 that grow"),
        ({"losses": [0.3, 0.1]}, "that grow, got"),
        ({"losses": [0.0, 0.1]}, "above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wired_model, wired_circuit, changes, message):
    with pytest.raises(ValueError, match=message):
        measure_power(plan_of(wired_circuit), attach(wired_model), None, **{**SETTINGS, **changes})
