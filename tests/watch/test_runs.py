import os
import time

import pytest

from circuitkeep.watch.runs import find_logs, last_write, state_of


def log_at(path, age_s=0.0, name="metrics.csv"):
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("step\n")
    then = time.time() - age_s
    os.utime(path / name, (then, then))
    return path


def test_nothing_is_there_yet(tmp_path):
    assert find_logs(tmp_path) == {}
    assert find_logs(tmp_path / "gone") == {}


def test_the_log_last_written_comes_first(tmp_path):
    log_at(tmp_path / "logs/version_0", 30)
    log_at(tmp_path / "logs/version_1", 10)
    log_at(tmp_path / "0/logs/version_0", 20, "heads.csv")
    log_at(tmp_path / "0/logs/version_0", 200)
    found = find_logs(tmp_path)
    assert list(found) == ["logs/version_1", "0/logs/version_0", "logs/version_0"]
    assert found["logs/version_1"] == tmp_path / "logs/version_1"


def test_of_two_written_at_once_the_higher_version_comes_first(tmp_path):
    for version in (2, 10, 9):
        path = log_at(tmp_path / f"version_{version}")
        os.utime(path / "metrics.csv", (1e9, 1e9))
    assert list(find_logs(tmp_path)) == ["version_10", "version_9", "version_2"]


def test_the_logs_own_folder_may_be_named(tmp_path):
    log_at(tmp_path)
    assert list(find_logs(tmp_path)) == ["."]


def test_other_folders_are_not_looked_through(tmp_path):
    for name in (".hydra", "model", "checkpoints", "references", "wandb"):
        log_at(tmp_path / name)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/other.csv").write_text("step\n")
    assert find_logs(tmp_path) == {}


def test_a_link_leads_nowhere_else(tmp_path):
    log_at(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert find_logs(tmp_path / "run") == {}


@pytest.mark.parametrize(("age_s", "state"), [(0, "running"), (50, "running"), (70, "silent")])
def test_a_run_is_silent_after_a_while(tmp_path, age_s, state):
    found = state_of(log_at(tmp_path / "logs/version_0", age_s), tmp_path, 60.0)
    assert found["state"] == state
    assert found["age_s"] == pytest.approx(age_s, abs=5)


@pytest.mark.parametrize(("model_age_s", "state"), [(90, "finished"), (200, "silent")])
def test_a_run_is_finished_when_its_model_is_saved_after_the_log(tmp_path, model_age_s, state):
    folder = log_at(tmp_path / "run/logs/version_0", 100)
    model = tmp_path / "run/model"
    model.mkdir()
    then = time.time() - model_age_s
    os.utime(model, (then, then))
    assert state_of(folder, tmp_path, 60.0)["state"] == state
    # A model above what is watched is of something else.
    assert state_of(folder, tmp_path / "run/logs", 60.0)["state"] == "silent"


def test_a_clock_that_is_behind_says_now(tmp_path):
    assert state_of(log_at(tmp_path, -1000), tmp_path, 60.0)["age_s"] == 0


def test_last_write_of_nothing(tmp_path):
    assert last_write(tmp_path) == 0
