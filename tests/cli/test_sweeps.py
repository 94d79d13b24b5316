"""Sweeps: a folder per run, nothing run twice, nothing lost, and a report over all of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from circuitkeep.callbacks.checkpoint import AtomicCheckpointIO
from circuitkeep.cli.jobs import comparable, swept_keys
from circuitkeep.cli.surroundings import config_directory
from circuitkeep.sweeps import journal

pytestmark = pytest.mark.filterwarnings("ignore:.*is not logged")


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def record(folder):
    return json.loads((folder / "run.json").read_text())


def events(folder, *kinds):
    return [(e["run"], e["event"]) for e in journal.read(folder) if e["event"] in kinds]


@pytest.fixture(scope="session")
def sweep(train):
    """The arguments of a sweep into ``sweep``."""
    return (*train, "-m", "output=sweep")


def test_a_sweep_that_is_started_again_runs_what_is_new(command, sweep, tmp_path):
    code, stdout, stderr = command(*sweep, "penalty.weight=0.0", "trainer.max_steps=2")
    assert code == 0, stderr
    assert "finished" in stdout
    first = tmp_path / "sweep/seed-0"  # a value that is given once names no run
    before = (first / "run.json").read_bytes()
    code, stdout, _ = command(*sweep, "penalty.weight=0.0", "trainer.max_steps=2", "seed=0,1")
    assert code == 0
    assert (first / "run.json").read_bytes() == before
    assert events(tmp_path / "sweep", "started", "skipped") == [
        ("seed-0", "started"),
        ("seed-0", "skipped"),
        ("seed-1", "started"),
    ]
    found = record(tmp_path / "sweep/seed-1")
    assert found["status"] == "finished"
    assert found["unregularized"]
    assert found["swept"] == {"seed": "1"}
    assert found["group"] == record(first)["group"]
    assert found["fingerprint"] != record(first)["fingerprint"]
    assert {"val/loss_nats", "circuit/ind/identity_retention"} <= found["metrics"].keys()


def test_a_broken_run_goes_on_exactly_and_harms_no_other(command, sweep, tmp_path, monkeypatch):
    save = AtomicCheckpointIO.save_checkpoint

    def breaks(self, checkpoint, path, **more):
        save(self, checkpoint, path, **more)
        if os.fspath(path).endswith("last.ckpt") and checkpoint["global_step"] == 2:
            raise RuntimeError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", breaks)
        code, stdout, stderr = command(*sweep, "seed=0,1")
    assert code == 1, stderr
    assert stdout.count("failed") >= 2
    assert "the power failed" in stdout
    assert record(tmp_path / "sweep/seed-1")["error"] == "the power failed"
    code, stdout, stderr = command(*sweep, "seed=0,1")
    assert code == 0, stderr
    assert stdout.count("resumed") == 2
    assert command(*(x for x in sweep if x != "-m"), "seed=1", "output=whole")[0] == 0
    assert weights(tmp_path / "sweep/seed-1") == weights(tmp_path / "whole")
    assert record(tmp_path / "sweep/seed-1")["status"] == "finished"


def test_a_mistake_stops_no_other_job(command, sweep, tmp_path):
    code, stdout, stderr = command(*sweep, "penalty.weight=-1.0,0.0")
    assert code == 2
    assert "weight must be >= 0, got -1.0" in stderr
    assert "Traceback" not in stderr
    assert events(tmp_path / "sweep", "failed", "finished") == [
        ("penalty.weight--1.0+seed-0", "failed"),
        ("penalty.weight-0.0+seed-0", "finished"),
    ]
    assert "failed" in stdout


def test_a_run_of_another_config_is_refused(command, sweep, tmp_path):
    assert command(*sweep, "seed=0")[0] == 0
    folder = tmp_path / "sweep/seed-0"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    code, _, stderr = command(*sweep, "seed=0", "trainer.max_steps=4")
    assert code == 2
    assert "holds a run of another config (trainer.max_steps=3, now 4)" in stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (folder / "run.json").unlink()
    code, _, stderr = command(*sweep, "seed=0")
    assert code == 2
    assert "holds a run that is of no sweep" in stderr


def test_a_run_that_another_sweep_is_at_is_left_to_it(command, sweep, tmp_path):
    folder = tmp_path / "sweep/seed-0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        code, stdout, _ = command(*sweep, "seed=0")
    assert code == 0
    assert "busy" in stdout
    assert not (folder / "run.json").exists()


def test_what_a_config_varies_names_runs_too(command, sweep, tmp_path, monkeypatch):
    configs = shutil.copytree(config_directory(), tmp_path / "configs")
    with (configs / "train.yaml").open("a") as file:
        file.write("  sweeper:\n    params:\n      seed: 3,4\n")
    monkeypatch.setattr("circuitkeep.cli.application.config_directory", lambda: configs)
    assert command(*sweep, "trainer.max_steps=1")[0] == 0
    assert {path.parent.name for path in tmp_path.glob("sweep/*/run.json")} == {"seed-3", "seed-4"}


# Optimizing sweepers


def optuna(trials):
    return (
        "hydra/sweeper=optuna",
        "hydra.sweeper.direction=[minimize,maximize]",
        "hydra.sweeper.sampler.seed=0",
        "hydra.sweeper.n_jobs=1",
        f"hydra.sweeper.n_trials={trials}",
        "trainer.max_steps=1",
    )


# optuna 2.10 asks the event loop policy and SQLAlchemy for what later ones deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*ExperimentalWarning|.*is experimental")
def test_optuna_is_told_price_and_retention(command, sweep, tmp_path):
    code, _, stderr = command(*sweep, *optuna(2), "penalty.weight=interval(0.1,1.0)")
    assert code == 0, stderr
    solutions = OmegaConf.load(tmp_path / "sweep/optimization_results.yaml").solutions
    told = [list(solution["values"]) for solution in solutions]
    runs = [record(path.parent) for path in (tmp_path / "sweep").glob("*/run.json")]
    assert len(runs) == 2
    measured = [
        [r["metrics"]["val/loss_nats"], r["metrics"]["circuit/ind/behaviour_retention"]]
        for r in runs
        if "circuit/ind/behaviour_retention" in r["metrics"]
    ]
    assert all(values in measured for values in told)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_unknown_objective_is_a_mistake(command, sweep):
    code, stdout, stderr = command(
        *sweep, *optuna(1), "penalty.weight=interval(0.1,1.0)", "objective=[val/loss,val/loss_nats]"
    )
    assert code == 2, stderr
    assert "'val/loss' is none of the run's final metrics" in stderr
    assert "failed" in stdout


# Other processes


def console(folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "circuitkeep", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_jobs_in_other_processes(sweep, tmp_path, launcher):
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = console(tmp_path, *sweep, f"hydra/launcher={launcher}", *more, "seed=0,1")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    ran = [e for e in journal.read(tmp_path / "sweep") if e["event"] == "finished"]
    assert {e["run"] for e in ran} == {"seed-0", "seed-1"}
    assert all(e["pid"] != process.pid for e in ran)


@pytest.mark.slow
def test_each_run_may_take_several_devices(sweep, tmp_path):
    devices = "trainer.devices=2", "+trainer.strategy=ddp"
    process = console(tmp_path, *sweep, *devices, "seed=0,1")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert events(tmp_path / "sweep", "started", "finished") == [
        (f"seed-{seed}", event) for seed in (0, 1) for event in ("started", "finished")
    ]
    assert weights(tmp_path / "sweep/seed-0") != weights(tmp_path / "sweep/seed-1")


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(sweep, tmp_path):
    arguments = (*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2,3")
    process = console(tmp_path, *arguments, start_new_session=True)
    until = time.monotonic() + 200
    while not events(tmp_path / "sweep", "finished") and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = dict(events(tmp_path / "sweep", "finished"))
    assert done
    again = console(tmp_path, *arguments)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    ended = [run for run, _ in events(tmp_path / "sweep", "finished")]
    assert sorted(ended) == [f"seed-{seed}" for seed in range(4)], "each run finished once"
    assert set(done) <= {run for run, _ in events(tmp_path / "sweep", "skipped")}


# The report


def test_the_report_of_a_sweep(command, sweep, tmp_path, monkeypatch):
    values = "penalty.weight=0.0,1.0", "trainer.max_steps=1,2"
    assert command(*sweep, *values)[0] == 0
    code, stdout, stderr = command("sweep", "report", "sweep", "rows=8")
    assert code == 0, stderr
    assert "penalty.weight=1.0" in stdout
    report = json.loads((tmp_path / "sweep/report.json").read_text())
    against = {group["label"]: group["against"] for group in report["groups"] if group["against"]}
    assert against == {  # longer runs are not compared with shorter ones
        f"penalty.weight=1.0, trainer.max_steps={n}": f"penalty.weight=0.0, trainer.max_steps={n}"
        for n in (1, 2)
    }
    assert [group["unregularized"] for group in report["groups"]] == [True, True, False, False]
    kept = report["groups"][-1]["circuits"]["ind"]["identity"]
    assert kept["share"]["seeds"] == kept["difference"]["seeds"] == 1
    assert kept["share"]["prompts"] == report["circuits"]["ind"]["rows"] == 8
    assert (tmp_path / "sweep/runs.csv").read_text().count("\n") == 5
    assert "<h1>" in (tmp_path / "sweep/report.html").read_text()
    # Of the same size as the monitor's, which measures other rows of the same probe.
    for run in report["runs"]:
        told = run["metrics"]["circuit/ind/identity_retention"]
        assert run["retention"]["ind"]["identity"] == pytest.approx(told, abs=0.2)

    def never(*_, **__):
        raise AssertionError("what was measured is measured again")

    monkeypatch.setattr("circuitkeep.sweeps.rows.measure_circuit", never)
    assert command("sweep", "report", "sweep", "rows=8", "output=elsewhere")[0] == 0
    again = json.loads((tmp_path / "elsewhere/report.json").read_text())
    assert again["groups"] == report["groups"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "circuitkeep sweep report DIR"),
        (["sweep", "reprot", "x"], "circuitkeep sweep report DIR"),
        (["sweep", "report"], "which sweep?"),
        (["sweep", "report", "nowhere"], "no run.json below nowhere"),
    ],
)
def test_mistakes_in_asking_for_a_report(command, arguments, message):
    code, _, stderr = command(*arguments)
    assert code == 2
    assert message in stderr
    assert stderr.count("\n") == 1


# Names and configs


def test_what_varies_is_read_from_the_command_line():
    overrides = ["-m", "seed=0,1", "a.b=range(0,3)", "c=[1,2]", "penalty=none,floor", "~x", "d=5"]
    assert swept_keys(overrides) == ("seed", "a.b", "penalty")
    assert swept_keys(["++a@b=1,2"]) == ("a@b",)
    with pytest.raises(OverrideParseException):
        swept_keys(["a=["])


def test_where_a_run_writes_is_not_compared():
    def config(output):
        return OmegaConf.create(
            {
                "output": output,
                "objective": [output],
                "validate_at_end": False,
                "trainer": {"resume": output, "root": "${output}"},
                "seed": 1,
                "data": {"seed": "${seed}"},
            }
        )

    assert comparable(config("a")) == comparable(config("b"))
    assert comparable(config("a"), {"seed": None})["data"] == {"seed": None}
    assert comparable(config("a"))["data"] == {"seed": 1}
