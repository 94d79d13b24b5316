"""Runs are found below a folder, and compared with the right ones."""

from dataclasses import replace

import pytest

from circuitkeep.sweeps.collect import Run, find_runs, grouped
from circuitkeep.sweeps.record import write_record


def test_groups_are_paired_with_what_held_nothing(sweep):
    runs, _, _ = sweep
    groups = grouped(runs, dict.fromkeys([run.name for run in runs], "one setting"))
    assert [group.label for group in groups] == [f"penalty.weight={w}" for w in ("0", "1", "10")]
    assert [group.against for group in groups] == ["", *["penalty.weight=0"] * 2]
    assert [run.record.seed for run in groups[1].runs] == [0, 1, 2]


def test_runs_of_another_setting_are_not_compared(sweep):
    runs, _, _ = sweep
    settings = {run.name: "longer" if run.name.startswith("w10") else "short" for run in runs}
    groups = grouped(runs, settings)
    assert [group.against for group in groups] == ["", "penalty.weight=0", ""]


def test_one_label_of_two_settings_is_told_apart(make_run):
    first, second = make_run("1", 0, 1.0), make_run("1", 1, 1.0)
    second = Run("other", second.folder, replace(second.record, group="another"))
    groups = grouped([first, second], {first.name: "", "other": ""})
    assert {group.label for group in groups} == {
        "penalty.weight=1 (1)",
        "penalty.weight=1 (anothe)",
    }


def test_finished_runs_are_found_once(make_run, tmp_path):
    records = {"a": make_run("1", 0, 1.0).record, "deep/b": make_run("1", 1, 1.0).record}
    records["same-as-a"] = records["a"]
    records["broken"] = replace(records["a"], status="running")
    for name, record in records.items():
        write_record(tmp_path / name, record)
    runs, others = find_runs(tmp_path)
    assert [run.name for run in runs] == ["a", "deep/b"]
    assert others == ["broken"]


def test_nothing_to_report_on(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run.json below .*train -m"):
        find_runs(tmp_path)
    write_record(tmp_path / "a", replace(make_run("1", 0, 1.0).record, status="failed"))
    with pytest.raises(ValueError, match="none of the 1 runs"):
        find_runs(tmp_path)
