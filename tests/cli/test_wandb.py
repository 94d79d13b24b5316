"""The console and W&B: a run that goes on, a report with its models, a page."""

import json
import re

import pytest

from circuitkeep.callbacks.wandb_logger import run_id_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is not logged")


@pytest.fixture
def offline(wandb_offline, monkeypatch):
    yield from wandb_offline(monkeypatch)


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in."""
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()  # its settings outlive a failed start


def test_a_resumed_run_goes_on_and_the_report_names_it(
    command, train, offline, read_wandb, models, circuit_file, tmp_path
):
    train = (*train, "logger=wandb", "callbacks.monitor.every_n_steps=1")
    train = (*train, "logger.wandb.log_model=true")
    assert command(*train, "trainer.max_steps=2")[0] == 0
    run_id = run_id_of(tmp_path / "run")
    assert command(*train, "trainer.resume=run/checkpoints/last.ckpt")[0] == 0
    paths = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert [path.name.rpartition("-")[2] for path in paths] == [run_id] * 2
    first, second = map(read_wandb, paths)
    key = "circuit/ind/induction/score"
    assert [step for run in (first, second) for step, _ in run.series(key)] == [0, 1, 2, 3]
    # The table of the second holds the heads of the first, too.
    rows = second.series("circuit/heads")[-1][1]
    table = json.loads((second.files / rows["path"]).read_text())
    assert {row[0] for row in table["data"]} == {0, 1, 2, 3}
    files = {
        e["path"] for e in second.artifacts[f"trained-model-{run_id}"][0]["manifest"]["contents"]
    }
    assert "config.json" in files
    assert f"model-{run_id}" in first.artifacts

    report = (
        "compare",
        f"base={models / 'tiny'}",
        "checkpoints=[run/model]",
        f"circuits=[{circuit_file()}]",
        "rows=8",
        "output=report",
        "wandb=me/project",
    )
    assert command(*report)[0] == 0
    (path,) = (tmp_path / "report/wandb").glob("offline-run-*")
    found = read_wandb(path)
    (artifact,) = found.artifacts["comparison"]
    assert artifact["type"] == "report"
    assert {e["path"] for e in artifact["manifest"]["contents"]} >= {"report.json", "report.html"}
    (made_of,) = json.loads(artifact["metadata"])["checkpoints"].values()
    assert made_of == {"path": "run/model", "run": run_id}
    assert found.history[-1]["comparison/report"]["_type"] == "html-file"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["wandb"], "project is not set: add project=ENTITY/PROJECT, as in `circuitkeep wandb"),
        (["wandb", "me/it"], r"circuits is not set: add circuits=\[FILE.yaml,...\]"),
        (
            ["wandb", "it", "circuits=[gpt2-small-ioi]"],
            "project must be ENTITY/PROJECT, got 'it'",
        ),
        (
            ["wandb", "me/it", "circuits=[gpt2-small-ioi]", "kind=poster"],
            "kind must be one of report, workspace, got 'poster'",
        ),
        (
            ["wandb", "me/it", "circuits=[gpt2-small-ioi]"],
            "W&B did not take the page .*`wandb login` logs in",
        ),
        (
            ["compare", "base={}", "checkpoints=[{}]", "circuits=[{c}]", "wandb=a/b/c"],
            "wandb must be PROJECT or ENTITY/PROJECT, got 'a/b/c'",
        ),
        (
            ["compare", "base={}", "checkpoints=[{}]", "circuits=[{c}]", "wandb=a/b"],
            "wandb=a/b cannot start: .*`wandb login`",
        ),
    ],
)
def test_mistakes(command, nobody, models, circuit_file, arguments, sentence):
    given = [text.format(models / "tiny", c=circuit_file()) for text in arguments]
    code, out, err = command(*given)
    said = [line for line in err.splitlines() if not line.startswith("wandb:")]
    assert (code, out, len(said)) == (2, "", 1), err
    assert re.search(sentence, said[0]), said[0]
