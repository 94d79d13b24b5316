import pytest

from circuitkeep.checks import read_plan
from circuitkeep.checks.plan import RETAINED, ROWS, SEEDS
from circuitkeep.circuits import Circuit, CircuitError, Head, Role

PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 24}


def circuit(tests=None, thresholds=None, probe=PROBE, behaviour="accuracy", role="induction"):
    roles = (Role("previous-token", (Head(0, 1),)), Role(role, (Head(1, 2),)))
    return Circuit("c", roles, probe, behaviour, "made up", thresholds or {}, tests or {})


def found(of, **settings):
    return {check.name: check for check in read_plan(of, **settings).checks}


def test_what_is_asked_if_nothing_is_said():
    plan = read_plan(circuit())
    assert (plan.rows, plan.seeds) == (ROWS, SEEDS)
    assert [check.name for check in plan.checks] == ["causal"]
    assert (plan.checks[0].threshold, plan.checks[0].source) == (0, "default")


def test_a_base_is_compared_with():
    names = found(circuit(), base=True)
    kinds = {f"retention[{kind}]" for kind in ("identity", "causal", "behaviour")}
    assert set(names) == {"causal", "no_migration"} | kinds
    assert all(names[name].threshold == RETAINED for name in kinds)
    assert {name for name, check in names.items() if check.needs_base} == kinds | {"no_migration"}


def test_who_asks_comes_in_an_order():
    thresholds = {"previous-token": 0.3, "induction": 0.4}
    baseline = {"score[induction]": 0.5, "causal": 0.7, "behaviour": 0.8}
    names = found(circuit({"causal": 1.5}, thresholds), baseline=baseline)
    asked = {name: (check.threshold, check.source) for name, check in names.items()}
    assert asked == {
        "score[previous-token]": (0.3, "thresholds"),
        "replicates[previous-token]": (0.3, "thresholds"),
        "score[induction]": (0.5, "baseline"),
        "replicates[induction]": (0.5, "baseline"),
        "causal": (1.5, "tests"),
        "behaviour": (0.8, "baseline"),
    }


def test_checks_are_switched_off():
    tests = {
        **dict.fromkeys(["causal", "replicates", "no_migration"]),
        "retention": {"identity": None, "causal": 0.5},
        "score": {"induction": 0.5, "previous-token": None},
        "rows": 16,
        "seeds": [3],
    }
    plan = read_plan(circuit(tests, {"previous-token": 0.3}), base=True)
    assert [check.name for check in plan.checks] == [
        *("score[induction]", "retention[causal]", "retention[behaviour]")
    ]
    assert (plan.rows, plan.seeds) == (16, (3,))


def test_whole_kinds_are_switched_off():
    tests = {"retention": None, "score": None}
    assert set(found(circuit(tests, {"induction": 0.3}), base=True)) == {"causal", "no_migration"}


def test_in_how_many_parts():
    tests = {"score": {"induction": 0.5, "previous-token": 0.5}, "replicates": {"induction": 2}}
    names = found(circuit(tests))
    assert names["replicates[induction]"].at_least == 2
    assert names["replicates[previous-token]"].at_least is None
    tests["replicates"] = {"induction": None, "previous-token": "all"}
    names = found(circuit(tests))
    assert "replicates[induction]" not in names
    assert names["replicates[previous-token]"].at_least is None


@pytest.mark.parametrize(
    ("tests", "message", "keys"),
    [
        ({"scores": {}}, "unknown key 'scores'; did you mean 'score'?", ("scores",)),
        ({"score": 0.5}, "'score' must map previous-token, induction to numbers", ("score",)),
        ({"score": {"induktion": 0.5}}, "did you mean 'induction'?", ("score", "induktion")),
        ({"score": {"induction": "high"}}, "must be a number", ("score", "induction")),
        ({"score": {"induction": True}}, "must be a number", ("score", "induction")),
        ({"score": {"induction": 1.5}}, "between 0 and 1, got 1.5", ("score", "induction")),
        ({"causal": float("nan")}, "tests.causal must be a number, got nan", ("causal",)),
        ({"causal": {"at": 1}}, "tests.causal must be a number", ("causal",)),
        ({"retention": {"ident": 1}}, "did you mean 'identity'?", ("retention", "ident")),
        ({"replicates": 3}, "'replicates' must map", ("replicates",)),
        ({"replicates": {"copy": 3}}, "unknown key 'copy'", ("replicates", "copy")),
        ({"replicates": {"induction": 0}}, "from 1, or all", ("replicates", "induction")),
        ({"rows": 1}, "at least 2 for an interval, got 1", ("rows",)),
        ({"rows": "many"}, "at least 2 for an interval", ("rows",)),
        ({"seeds": []}, "different whole numbers", ("seeds",)),
        ({"seeds": [1, 1]}, "different whole numbers", ("seeds",)),
        ({"seeds": "12"}, "different whole numbers", ("seeds",)),
        ({"seeds": 1}, "different whole numbers", ("seeds",)),
        ({"no_migration": False}, "must be true, or null", ("no_migration",)),
        ({"no_migration": 1}, "must be true, or null", ("no_migration",)),
    ],
)
def test_what_is_refused(tests, message, keys):
    with pytest.raises(CircuitError) as caught:
        read_plan(circuit(tests))
    assert message in str(caught.value)
    assert caught.value.keys == ("tests", *keys)


@pytest.mark.parametrize(
    ("changes", "message", "keys"),
    [
        ({"probe": {**PROBE, "lenght": 3}}, "did you mean 'length'?", ("probe", "lenght")),
        (
            {"probe": {"_target_": "circuitkeep.probes.Repeat"}},
            "Probe class",
            ("probe", "_target_"),
        ),
        ({"behaviour": "logit_difference"}, "cannot measure", ("behaviour",)),
        ({"role": "name-mover"}, "does not label the role", ("roles", "name-mover")),
    ],
)
def test_a_circuit_that_cannot_be_tested(changes, message, keys):
    with pytest.raises(CircuitError) as caught:
        read_plan(circuit(**changes))
    assert message in str(caught.value)
    assert caught.value.keys == keys
