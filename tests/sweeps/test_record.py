"""Names are safe and stable; records survive a round trip; configs that differ are told apart."""

import re

import pytest

from circuitkeep.sweeps.record import (
    LONGEST,
    RunRecord,
    differences,
    fingerprint,
    read_record,
    run_name,
    swept_values,
    write_record,
)

RECORD = RunRecord(
    fingerprint="f",
    group="g",
    seed=2,
    swept={"penalty.weight": "0.1", "seed": "2"},
    overrides=("a=1", "seed=2"),
    unregularized=False,
    status="finished",
    started="2026",
    metrics={"val/loss_nats": 0.5},
)


def test_a_name_holds_what_varies_with_the_seed_last():
    swept = swept_values(["seed=2", "x=1", "+penalty.weight=0.1"], ("seed", "penalty.weight"))
    assert run_name(swept) == "penalty.weight-0.1+seed-2"


def test_the_last_of_two_values_counts():
    assert swept_values(["seed=1", "seed=2"], ("seed",)) == {"seed": "2"}


@pytest.mark.parametrize("value", ["a/../b", "é", "[1,2]", "x" * 300, "a b"])
def test_unusual_values_give_safe_names_that_differ(value):
    name = run_name({"data.train": value, "seed": "0"})
    assert re.fullmatch(r"[\w.+-]+", name, re.ASCII)
    assert len(name) <= LONGEST
    assert name != run_name({"data.train": value + "'", "seed": "0"})


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert read_record(tmp_path) is None
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert RECORD.label == "penalty.weight=0.1"


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}'])
def test_another_file_of_that_name_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is no"):
        read_record(tmp_path)


def test_fingerprints_do_not_depend_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_differences_are_named_by_their_keys():
    there, here = {"a": {"b": 1, "c": 2}, "d": 0}, {"a": {"b": 1, "c": 3}}
    assert list(differences(there, here)) == [("a.c", 2, 3), ("d", 0, None)]
