"""Further probes, and the matrix of what was trained on and probed."""

import pytest
import torch

from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare.paired import CircuitRows
from circuitkeep.compare.transfer import check_origins, transfer_matrix, varied
from circuitkeep.compare.transfer_chart import transfer_chart

PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 16, "segment": [3, 4]}
RECALL = {"_target_": "circuitkeep.probes.KeyValueRecall"}
BASE = torch.tensor([1.0, 2.0, 3.0])


def circuit(name="induction", role="induction", probe=PROBE):
    return Circuit(name, (Role(role, (Head(1, 0),)),), probe, "accuracy", "a test")


def rows(share):
    return CircuitRows({"induction": share * BASE}, share * BASE, share * BASE)


def test_settings_change_the_circuits_own_probe():
    (found,) = varied([circuit()], {"longer": {"length": 32}})
    assert found.name == "induction, longer"
    assert found.probe == {**PROBE, "length": 32}
    assert found.heads == circuit().heads


def test_a_probe_counts_for_the_circuits_whose_roles_it_labels():
    other = circuit("recall", "previous-token", {**PROBE, "offset": 1})
    both = varied([circuit(), other], {"short": {"length": 12}})
    assert [each.name for each in both] == ["induction, short", "recall, short"]
    own = {"first": {**PROBE, "more_labels": ["first-token"]}}
    sink = circuit("sink", "first-token", own["first"])
    assert [each.name for each in varied([circuit(), sink], own)] == [
        "induction, first",
        "sink, first",
    ]
    assert [each.name for each in varied([circuit(), sink], {"plain": PROBE})] == [
        "induction, plain"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lenght": 8}, "transfer.probes.x fits no circuit: .*did you mean 'length'"),
        ({"segment": [9, 2]}, "transfer.probes.x fits no circuit: .*segment must be"),
    ],
)
def test_settings_that_fit_no_circuit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        varied([circuit()], {"x": settings})


def test_the_matrix_by_hand():
    probed = [circuit(), *varied([circuit()], {"longer": {"length": 32}})]
    base = {"induction": rows(1.0), "induction, longer": rows(0.5)}
    measured = {
        "a0": {"induction": rows(0.4), "induction, longer": rows(0.1)},
        "b": {"induction": rows(1.0), "induction, longer": rows(0.25)},
        "a1": {"induction": rows(0.6), "induction, longer": rows(0.1)},
    }
    origins = {"a0": "maps", "a1": "maps", "b": "pairs"}
    single = transfer_matrix(probed, base, measured, {}, origins)
    assert [(row.name, row.trained_on) for row in single.rows] == [
        ("a0", "maps"),
        ("a1", "maps"),
        ("b", "pairs"),
    ]
    assert [column.base["behaviour"] for column in single.columns] == [2.0, 1.0]
    share, interval = single.rows[0].shares["induction, longer"]["causal"]
    assert share == pytest.approx(0.2)
    assert interval == pytest.approx((0.2, 0.2))  # every draw of rows says so
    grouped = transfer_matrix(probed, base, measured, {"seeds": ["a0", "a1"]}, origins)
    assert [(row.name, row.trained_on) for row in grouped.rows] == [
        ("seeds", "maps"),
        ("b", "pairs"),
    ]
    share, (low, high) = grouped.rows[0].shares["induction"]["identity"]
    assert share == pytest.approx(0.5)
    assert low < 0.4 < 0.6 < high  # two seeds say little
    chart = transfer_chart(grouped)
    frames = {frame["name"]: frame["data"][0] for frame in chart["frames"]}
    assert frames["behaviour"]["z"] == [[0.5, 0.2], [1.0, 0.5]]
    assert chart["layout"]["yaxis"]["ticktext"] == ["maps: seeds", "pairs: b"]


def test_what_is_not_known_goes_by_its_name():
    probed = [circuit()]
    found = transfer_matrix(
        probed, {"induction": rows(1.0)}, {"x": {"induction": rows(1.0)}}, {}, {"x": ""}
    )
    assert [(row.name, row.trained_on) for row in found.rows] == [("x", "x")]


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match="no checkpoint 'planv'; did you mean 'plain'"):
        check_origins({"planv": "maps"}, ["plain", "guarded"])
