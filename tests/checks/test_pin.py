from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.checks.baseline import read_baseline, write_baseline
from circuitkeep.checks.evidence import gather, make_rows
from circuitkeep.checks.judge import judge
from circuitkeep.checks.outcome import Verdict
from circuitkeep.checks.pin import ends, pin, pinned_plan, reseeded
from circuitkeep.checks.plan import read_plan
from circuitkeep.circuits import Head

TESTS = {"rows": 16, "seeds": [1, 2]}


def plan_of(circuit, base=False, **tests):
    return pinned_plan(replace(circuit, tests={**TESTS, **tests}), base=base)


def test_what_is_pinned_passes_on_other_rows(wired_model, wired_circuit, tmp_path):
    backend = attach(wired_model)
    told = []
    found = pin(
        plan_of(wired_circuit),
        backend,
        None,
        reseeds=6,
        twins=3,
        tell=lambda done, total: told.append((done, total)),
    )
    assert found.refused == {}
    assert told == [(done, 8) for done in range(1, 9)]
    checks = found.baseline.checks
    assert list(checks) == [
        *("score[previous-token]", "replicates[previous-token]"),
        *("score[induction]", "replicates[induction]"),
        *("causal", "behaviour"),
    ]
    for name, one in checks.items():
        assert one.null < one.threshold <= 0.9 * one.value, name
        assert one.low <= one.value + 3 * one.seed_spread, name
        assert one.seed_spread > 0, name
        assert one.false_alarm < 0.01, name
        assert 0.1 <= one.detects < 0.8, name
    write_baseline(found.baseline, tmp_path / "x.baseline.json")
    assert read_baseline(tmp_path / "x.baseline.json") == found.baseline
    circuit = replace(wired_circuit, tests={**TESTS, "seeds": [77, 78]})
    plan = read_plan(circuit, found.baseline.thresholds)
    assert {check.source for check in plan.checks} == {"baseline"}
    now = gather(plan, backend, make_rows(plan, backend, None))
    assert {judge(plan, check, now).verdict for check in plan.checks} == {Verdict.PASSED}


def test_what_does_not_clear_the_null_is_refused(wired_model, wired_circuit):
    """Heads that attend evenly, and write nothing."""
    heads = {role.name: [Head(role.heads[0].layer, 0)] for role in wired_circuit.roles}
    idle = wired_circuit.with_heads(heads, "idle")
    found = pin(plan_of(idle), attach(wired_model), None, reseeds=4, twins=3)
    assert list(found.baseline.checks) == ["behaviour"]
    assert "too near" in found.refused["score[induction]"]
    assert "there is no spread" in found.refused["causal"], "ablating them changes nothing at all"


def test_a_model_that_is_its_own_base_gives_no_threshold_of_retention(wired_model, wired_circuit):
    backend = attach(wired_model)
    plan = plan_of(wired_circuit, base=True, score=None, causal=None, behaviour=None)
    found = pin(plan, backend, None, backend, reseeds=3, twins=2)
    assert found.baseline.checks == {}
    assert found.refused.keys() == {f"retention[{p}]" for p in ("identity", "causal", "behaviour")}


def test_checks_that_are_switched_off_are_not_pinned(wired_circuit):
    plan = plan_of(wired_circuit, base=True, causal=None, retention={"identity": None})
    names = [check.name for check in plan.checks]
    assert "causal" not in names
    assert "retention[identity]" not in names
    assert "faithfulness" not in names
    plan = pinned_plan(wired_circuit, faithfulness=True)
    assert "faithfulness" in [check.name for check in plan.checks]


def test_reseeded_rows_are_all_others():
    assert reseeded(2, 3, 10) == [(10, 11, 12), (13, 14, 15)]


@pytest.mark.parametrize("at_least", ["all", 1, 3])
def test_the_ends_of_replicates_are_what_its_verdict_goes_by(wired_model, wired_circuit, at_least):
    tests = {**TESTS, "seeds": [1, 2, 3], "score": {"induction": 0.5}}
    tests["replicates"] = {"induction": at_least}
    plan = read_plan(replace(wired_circuit, tests=tests))
    check = next(one for one in plan.checks if one.kind == "replicates")
    backend = attach(wired_model)
    now = gather(plan, backend, make_rows(plan, backend, None))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(48, generator=generator) * now.seed.add(1)
    now.measured.scores["induction"][:, 1, 2] = 0.3 + 0.2 * noise
    _, low, high = ends(plan, check, now)
    assert low < high
    for threshold, verdict in (
        (low - 1e-4, Verdict.PASSED),
        (low + 1e-4, Verdict.INCONCLUSIVE),
        (high - 1e-4, Verdict.INCONCLUSIVE),
        (high + 1e-4, Verdict.FAILED),
    ):
        assert judge(plan, replace(check, threshold=threshold), now).verdict == verdict
