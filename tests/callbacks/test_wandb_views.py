"""A real offline run, read back with wandb's own reader and compared with docs/wandb.md."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import AuthenticationError, CommError, UsageError

from circuitkeep.callbacks import (
    CapabilityEvals,
    CircuitMonitor,
    CircuitPreservation,
    ExactResume,
    wandb_views,
)
from circuitkeep.callbacks.head_history import LONG_COLUMNS, HeadHistory
from circuitkeep.callbacks.wandb_logger import SteadyWandbLogger, run_id_of
from circuitkeep.callbacks.wandb_page import build_page, save_page
from circuitkeep.callbacks.wandb_report import publish_report, run_of_checkpoint
from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role, parse_circuit
from circuitkeep.evals.circuit import measure_circuit
from circuitkeep.probing import probe_rows
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM

DOCS = Path(__file__).parents[2] / "docs/wandb.md"
REPEATED = {"_target_": "circuitkeep.probes.RepeatedTokens"}
CHART = "Custom Chart Tables/{}_table"


def circuit(name, **roles):
    found = tuple(Role(role.replace("_", "-"), heads) for role, heads in roles.items())
    return Circuit(name, found, REPEATED, "accuracy", "made up")


ROWS = 64


def useful():
    """A circuit whose ablation costs the untrained model something: it has causal retention."""
    backend = attach(build_embedded(0))
    for index in range(4):
        found = circuit(
            "repeats", previous_token=(Head(0, 1), Head(0, 3)), induction=(Head(1, index),)
        )
        rows = probe_rows(found, backend, None, "held_out", ROWS, 10_000)
        if measure_circuit(backend, found, rows).effect_nats.mean() > 1e-4:
            return found
    raise AssertionError("no head is of use")


ONE = useful()
TWO = circuit("other-1.4b <i>", induction=(Head(1, 0),))


def offline(folder, **options):
    return WandbLogger(save_dir=folder, offline=True, **options)


@pytest.fixture(scope="module", autouse=True)
def quiet(wandb_offline):
    with pytest.MonkeyPatch.context() as patch:
        yield from wandb_offline(patch)


def fit(logger, callbacks, folder, steps=4, resume=None, **options):
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[ExactResume(), *callbacks],
        max_steps=steps,
        log_every_n_steps=1,
        val_check_interval=steps // 2,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"enable_checkpointing": False, **options},
    )
    with wandb_views.finished_runs(trainer):
        trainer.fit(
            CausalLM(build_embedded(0), lr=1e-2),
            datamodule=KeyValueMap(8 * 24, 16, batch_size=8),
            ckpt_path=resume,
            weights_only=None if resume is None else True,
        )
    return trainer


def documented():
    """Key -> kind, from the table of the docs; placeholders are in angle brackets."""
    rows = re.findall(
        r"^\| `([^`]+/[^`]+)` \| (number|page|chart|table) \|", DOCS.read_text(), re.M
    )
    assert len(rows) == len(dict(rows)) > 20
    return dict(rows)


def pattern(key):
    return re.compile(re.sub(r"<\w+>", "[^/]+", key))


def kind_of(key, value):
    if isinstance(value, dict):
        return {"html-file": "page", "table-file": "chart" if "Custom" in key else "table"}[
            value["_type"]
        ]
    assert isinstance(value, int | float)
    return "number"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, read_wandb):
    """A training with all that logs: two circuits, a constraint, a budget, capability."""
    folder = tmp_path_factory.mktemp("whole")
    guards = [
        CircuitPreservation(ONE, constraint=0.9, pool_rows=8),
        CircuitPreservation(TWO, budget=0.9, rows_per_step=1, pool_rows=8),
    ]
    monitor = CircuitMonitor([ONE, TWO], rows=ROWS, alert_below=1.0)
    data = KeyValueMap(8, 16, batch_size=8)
    with pytest.warns() as caught:  # an untrained model has little to keep, and little time
        fit(offline(folder), [*guards, monitor, CapabilityEvals({"same": data})], folder, 20)
    messages = [str(warning.message) for warning in caught]
    assert not [text for text in messages if "could not log" in text]
    (path,) = folder.glob("wandb/offline-run-*")
    return read_wandb(path), monitor, folder


def test_every_documented_key_is_there_and_no_other(whole):
    run, _, _ = whole
    wanted = documented()
    logged = {}
    for entry in run.history:
        for key, value in entry.items():
            if not key.startswith("_") and key not in ("trainer/global_step", "epoch"):
                chart = re.fullmatch(CHART.format("(.+)"), key)
                logged[chart[1] if chart else key] = kind_of(key, value)
    for key, kind in wanted.items():
        found = [name for name in logged if pattern(key).fullmatch(name)]
        assert found, f"{key} is in the docs and not in the run"
        assert {logged[name] for name in found} == {kind}, key
    for name in logged:
        assert any(pattern(key).fullmatch(name) for key in wanted), f"{name} is not in the docs"


def test_what_the_monitor_measured_is_what_is_logged(whole):
    run, monitor, _ = whole
    for key in monitor.history[0]:
        if key != "step":
            expected = [(e["step"], pytest.approx(e[key])) for e in monitor.history if key in e]
            assert run.series(key) == expected
            values = [value for _, value in run.series(key)]
            summary = run.summary[key]
            assert summary["last"] == pytest.approx(values[-1])
            assert summary["min"] == pytest.approx(min(values))
            assert summary["mean"] == pytest.approx(sum(values) / len(values))
    assert set(run.summary["capability/same/loss_nats"]) == {"min", "mean", "last"}


def test_pages_table_and_charts(whole):
    run, monitor, _ = whole
    pages = run.series("circuit/repeats/heads")
    assert [step for step, _ in pages] == [entry["step"] for entry in monitor.history]
    assert "Every head at step 20" in (run.files / pages[-1][1]["path"]).read_text()

    step, last = run.series("circuit/heads")[-1]
    table = json.loads((run.files / last["path"]).read_text())
    assert step == 20
    assert tuple(table["columns"]) == LONG_COLUMNS
    rows = [tuple(row) for row in table["data"]]
    assert rows == monitor.heads.long_rows(10_000)
    assert len(rows) == 2 * len(monitor.heads.rows)

    key = "circuit/repeats/head_scores"
    chart = run.config[f"_wandb.visualize.{key}"]["panel_config"]
    assert chart["panelDefId"] == "wandb/lineseries/v0"
    lines = json.loads((run.files / run.series(CHART.format(key))[-1][1]["path"]).read_text())
    assert set(chart["fieldSettings"].values()) == set(lines["columns"])
    expected = [[r[0], f"{r[2]} {r[3]}", r[4]] for r in monitor.heads.rows if r[1] == "repeats"]
    assert lines["data"] == expected


def test_artifacts(whole):
    run, _, folder = whole
    ((file,),) = (list(a["manifest"]["contents"]) for a in run.artifacts["circuit-repeats"])
    assert file["path"] == "circuit.yaml"
    assert run.artifacts["circuit-repeats"][0]["type"] == "circuit"
    assert parse_circuit(yaml.safe_load(Path(file["local_path"]).read_text())) == ONE
    assert "circuit-other-1.4b__i_" in run.artifacts
    (reference,) = run.artifacts["reference-repeats"]
    assert reference["type"] == "reference"
    assert json.loads(reference["metadata"]) == {"circuit": "repeats"}
    (file,) = reference["manifest"]["contents"]
    (kept,) = (folder / "references").glob("repeats-*")
    assert file["path"] == kept.name
    assert Path(file["local_path"]).read_bytes() == kept.read_bytes()


def test_alerts(whole):
    run, _, _ = whole
    below = [alert for alert in run.alerts if alert["title"].startswith("Below 100%")]
    assert below
    assert all(len(alert["title"]) < 64 for alert in run.alerts)
    assert {alert["wait_duration"] for alert in run.alerts} == {"600000"}
    assert "below 100%" in below[0]["text"]


def test_moves_and_falls_are_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(wandb_views, "alert", lambda trainer, *texts: told.append(texts))
    views, trainer = wandb_views.WandbViews(), Trainer(accelerator="cpu", logger=False)
    key = "circuit/a/identity_retention"
    for step, share in enumerate([1.0, 0.8, 0.7, 0.95, 0.5]):
        views.alert_below(trainer, {key: share, "circuit/a/behaviour": 0.1}, step, 0.9)
    assert told == [
        (f"Below 90%: {key}", f"{key} is 80.0% at step 1, below 90%"),
        (f"Below 90%: {key}", f"{key} is 50.0% at step 4, below 90%"),
    ]


class Counted(WandbLogger):
    """Counts what would be logged."""

    def __init__(self):
        super().__init__()
        self._experiment = self
        self.tables = []
        self.id = "counted"

    def log_metrics(self, metrics, step=None):
        self.tables += [table for key, table in metrics.items() if key == "circuit/heads"]

    def log_artifact(self, artifact):
        pass


def test_the_table_grows_neither_quadratically_nor_without_end(monkeypatch):
    monkeypatch.setattr(wandb_views, "MAX_ROWS", 1000)
    logger, history, views = Counted(), HeadHistory(), wandb_views.WandbViews()
    trainer = Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    for step in range(200):
        history.rows += [(step, TWO.name, "induction", f"L0H{head}", 0.5, 0.5) for head in range(9)]
        views.show(trainer, history, (), step)
    views.show_series(trainer, history, ())
    whole = 2 * len(history.rows)
    assert whole == 3600
    assert max(len(table.data) for table in logger.tables) <= 1000
    assert sum(len(table.data) for table in logger.tables) < 9 * whole
    assert logger.tables[-1].data[-1][0] == 199


def test_whatever_wandb_raises_the_training_goes_on(tmp_path, monkeypatch):
    import wandb

    def refuse(*args, **kwargs):
        raise RuntimeError("the service died")

    monkeypatch.setattr(wandb.Run, "log", refuse)
    monkeypatch.setattr(wandb.Run, "alert", refuse)
    monkeypatch.setattr(wandb.Run, "log_artifact", refuse)
    logger = SteadyWandbLogger(save_dir=tmp_path, offline=True)
    monitor = CircuitMonitor(ONE, rows=ROWS, alert_below=1.0)
    with pytest.warns(UserWarning, match="could not log") as caught:
        trainer = fit(logger, [monitor], tmp_path)
    told = [str(warning.message) for warning in caught if "could not log" in str(warning.message)]
    assert len(told) == 1
    assert told[0].startswith("SteadyWandbLogger could not log (RuntimeError: the service died)")
    assert trainer.global_step == 4
    assert [entry["step"] for entry in monitor.history] == [0, 2, 4]


UNREACHABLE = """
import sys
import time
from circuitkeep.callbacks.wandb_logger import SteadyWandbLogger
assert "wandb" not in sys.modules
logger = SteadyWandbLogger(project="p", save_dir=sys.argv[1], init_timeout_s=2.0)
began = time.monotonic()
run = logger.experiment
assert time.monotonic() - began < 30
assert run.offline
logger.log_metrics({"loss": 1.0}, step=3)
run.finish()
"""


@pytest.mark.parametrize(
    ("error", "falls_back"),
    [
        (CommError("no answer"), True),
        (TimeoutError("no answer"), True),
        (AuthenticationError("wrong key"), False),
        (UsageError("no key"), False),
    ],
)
def test_only_what_the_user_cannot_mend_falls_back(tmp_path, monkeypatch, error, falls_back):
    import wandb

    modes, init = [], wandb.init

    def down(mode=None, **settings):
        modes.append(mode)
        if mode != "offline":
            raise error
        return init(mode=mode, **settings)

    monkeypatch.setattr(wandb, "init", down)
    logger = SteadyWandbLogger(save_dir=tmp_path)
    if falls_back:
        with pytest.warns(UserWarning, match=r"W&B cannot be reached \(\w+: no answer\)"):
            assert logger.experiment.offline
        assert modes == [None, "offline"]
        logger.experiment.finish()
    else:
        with pytest.raises(type(error)):
            logger.log_metrics({"loss": 1.0})


@pytest.mark.slow
def test_without_a_network_the_run_is_kept_on_disk(tmp_path, read_wandb):
    environment = {
        **{key: x for key, x in os.environ.items() if not key.startswith("WANDB_")},
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "a" * 40,
    }
    command = [sys.executable, "-W", "always", "-c", UNREACHABLE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"UserWarning: (W&B cannot be reached .*)", done.stderr)
    assert len(told) == 1
    (path,) = tmp_path.glob("wandb/offline-run-*")
    assert f"`wandb sync {path}` uploads it later" in told[0]
    assert read_wandb(path).series("loss") == [(3, 1.0)]
    assert run_id_of(tmp_path) == path.name.rpartition("-")[2]


class OnlineRun:
    """What a report is logged to, with W&B's answers."""

    offline = False

    def __init__(self, kept):
        self.kept, self.used, self.logged, self.over = kept, [], [], False

    def use_artifact(self, name):
        if name not in self.kept:
            raise ValueError("not found")
        self.used.append(name)

    def log_artifact(self, artifact):
        self.logged.append(artifact)

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.over = True


def test_a_report_is_linked_to_the_models_it_is_made_of(tmp_path):
    checkpoints = {}
    for name in ("plain", "guarded", "csv"):
        (tmp_path / name / "model").mkdir(parents=True)
        checkpoints[name] = str(tmp_path / name / "model")
        if name != "csv":
            (tmp_path / name / f"wandb/run-20260101_000000-{name}0").mkdir(parents=True)
    # The run of a start that failed, and of the one that did not, under the same folder.
    (tmp_path / "plain/wandb/offline-run-20260101_000001-plain1").mkdir()
    checkpoints["midway"] = str(tmp_path / "guarded/checkpoints/step=2.ckpt")
    page = tmp_path / "report.html"
    page.write_text("<p>")
    run = OnlineRun({"trained-model-guarded0:latest"})
    with pytest.warns(UserWarning, match="W&B has no artifact trained-model-plain1:latest"):
        publish_report(WandbLogger(experiment=run), [page], checkpoints)
    assert run.used == ["trained-model-guarded0:latest"]
    artifact, pages = run.logged
    runs = {name: of["run"] for name, of in artifact.metadata["checkpoints"].items()}
    assert runs == {"plain": "plain1", "guarded": "guarded0", "csv": None, "midway": "guarded0"}
    assert list(pages) == ["comparison/report"]
    assert run.over
    assert run_of_checkpoint("gpt2") is None


def test_a_page_shows_what_is_documented(monkeypatch):
    workspace = build_page("workspace", "me/project", [ONE, TWO])
    assert [section.name for section in workspace.sections] == ["repeats", TWO.name, "Capability"]
    spec = workspace._to_model().spec.model_dump_json(by_alias=True)
    shown = {*re.findall(r'"((?:circuit|capability|val)/[^"]+)"', spec)}
    keys = documented()
    for key in shown:
        key = key.replace(".*", "x")
        assert any(pattern(known).fullmatch(key) for known in keys), key
    assert wandb_views.chart_table(ONE) in spec
    report = build_page("report", "me/project", [ONE, TWO])
    grids = [block for block in report.blocks if hasattr(block, "panels")]
    assert [len(grid.panels) for grid in grids] == [len(s.panels) for s in workspace.sections]
    assert report.entity == "me"

    import wandb

    class Page:
        url = "https://wandb.example/me/project"

        def save(self):
            assert wandb.Api() == "in"

    monkeypatch.setattr(wandb, "Api", lambda: "in")
    assert save_page(Page()) == Page.url
