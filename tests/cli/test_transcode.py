"""``circuitkeep transcode``: a training from the console, cut off, resumed, measured, refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuitkeep.tasks.transcoding import TranscoderTask
from circuitkeep.transcoders.storage import load_transcoder

SMALL = (
    "features=16",
    "k=2",
    "steps=6",
    "checkpoint_every=2",
    "data.rows=8",
    "data.held_out_rows=4",
    "data.length=16",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=3",
)


@pytest.fixture
def train(command, models):
    """Runs a small training; further arguments come last."""

    def run(*more):
        return command("transcode", "train", f"model.path={models / 'tiny'}", *SMALL, *more)

    return run


def weights(folder):
    return {
        f"{path.name} {name}": value
        for path in sorted(Path(folder, "transcoder").glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def equal(one, other):
    assert one.keys() == other.keys()
    assert one
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_training_leaves_a_transcoder_its_figures_and_a_log(train):
    code, out, err = train("output=run")
    assert (code, err) == (0, "")
    report = json.loads(Path("run/report.json").read_text())
    quality = report["quality"]
    assert len(quality["explained_variance"]) == 2
    assert report["training"]["features"] == 16
    assert (report["resumed"], report["wall_s"] > 0, report["process_s"] > 0) == (False, True, True)
    assert f"{quality['mean_explained_variance']:.3f}" in out
    assert f"loss {quality['loss_nats']:.3f} nats per token" in out
    assert f"{quality['recovered']:.1%} of the mean ablation's loss is recovered" in out
    transcoder = load_transcoder(Path("run/transcoder"))
    assert (transcoder.config.n_layers, transcoder.config.n_features) == (2, 16)
    assert transcoder.config.activation == "batchtopk"
    assert load_file("run/density.safetensors")["density"].shape == (2, 16)
    with open("run/logs/version_0/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/active"]) for row in rows if row["train/active"]] == [2.0] * 6
    assert sum(bool(row["val/explained_variance"]) for row in rows) == 2


def cut_at(monkeypatch, step):
    own = TranscoderTask.training_step

    def stopped(self, batch, batch_idx):
        if self.global_step == step:
            raise KeyboardInterrupt
        return own(self, batch, batch_idx)

    monkeypatch.setattr(TranscoderTask, "training_step", stopped)


@pytest.mark.parametrize("shards", [(), ("data.shards=true", "data.rows_per_shard=3")])
def test_a_training_that_was_cut_off_goes_on_exactly(train, monkeypatch, shards):
    assert train("output=whole", *shards)[0] == 0
    with monkeypatch.context() as patch:
        cut_at(patch, 5)
        assert train("output=cut", *shards)[0] == 130
    assert not Path("cut/transcoder").exists()
    assert train("output=cut", *shards)[0] == 0
    assert json.loads(Path("cut/report.json").read_text())["resumed"]
    assert equal(weights("whole"), weights("cut"))
    # And not because nothing matters.
    assert train("output=other", "seed=1", *shards)[0] == 0
    assert not equal(weights("whole"), weights("other"))


@pytest.fixture
def offline(wandb_offline, monkeypatch):
    yield from wandb_offline(monkeypatch)


def test_a_resumed_training_goes_on_in_its_run_of_wandb(train, monkeypatch, offline, read_wandb):
    with monkeypatch.context() as patch:
        cut_at(patch, 3)
        assert train("output=run", "logger=wandb")[0] == 130
    assert train("output=run", "logger=wandb")[0] == 0
    paths = sorted(Path("run/wandb").glob("offline-run-*"))
    assert len(paths) == 2
    assert len({path.name.rpartition("-")[2] for path in paths}) == 1
    first, second = map(read_wandb, paths)
    assert len(first.series("train/active")) + len(second.series("train/active")) >= 6
    assert [value for _, value in second.series("train/active")] == [2.0] * 4


def test_a_folder_of_another_training_is_refused(train, monkeypatch):
    # A training that never began is in nobody's way.
    assert train("output=run", "k=17")[0] == 2
    with monkeypatch.context() as patch:
        cut_at(patch, 3)
        train("output=run")
    code, _, err = train("output=run", "task.lr=0.1")
    assert code == 2
    assert "run holds a training with task.lr=0.004, and this one has 0.1; choose another" in err
    # How it runs is free.
    assert train("output=run", "trainer.log_every_n_steps=2")[0] == 0
    code, _, err = train("output=run")
    assert code == 2
    assert "run holds the same training, finished; choose another output" in err


def test_a_transcoder_is_measured_on_other_text_and_on_other_models(train, command, models):
    assert train("output=run")[0] == 0
    asked = ("data.held_out_rows=4", "data.length=16", "trainer.accelerator=cpu")
    given = ("transcode", "evaluate", "transcoder=run/transcoder", *asked)
    code, out, err = command(*given, f"model.path={models / 'tiny'}", "output=own")
    assert (code, err) == (0, "")
    assert "another model" not in out
    own = json.loads(Path("own/report.json").read_text())
    assert own["trained_on_this_model"]
    assert 4 < own["quality"]["tokens"] <= 64
    code, out, _ = command(*given, f"model.path={models / 'other'}", "output=other")
    assert code == 0
    assert "The transcoder was trained on another model" in out
    other = json.loads(Path("other/report.json").read_text())
    assert not other["trained_on_this_model"]
    assert other["quality"]["loss_nats"] != own["quality"]["loss_nats"]


def test_a_text_is_trained_on(train, models):
    Path("text.txt").write_text(" ".join(f"w{number % 32}" for number in range(400)))
    path = f"model.path={models / 'text'}"
    code, _, err = train(path, "data.text=text.txt", "data.rows=null", "output=run")
    assert (code, err) == (0, "")
    assert load_file("run/tokens.safetensors")["train"].shape == (23, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["k=17"], "k=17: choose 1 to n_features=16"),
        (["k=null"], "topk and batchtopk need k"),
        (["activation=gelu"], "activation='gelu': choose from jumprelu, relu, topk, batchtopk"),
        (["reads=nothing"], "reads='nothing': choose from stream, normalized"),
        (["features=many"], "n_features must be an integer, got 'many'"),
        (["task.rl=1"], "there is no key 'task.rl'; known: sparsity"),
        (["data.dtype=int8"], "data.dtype='int8': choose one of"),
        (["data.length=64"], "data.length=64 is longer than the model's context of 32"),
        (["data.rows=ten"], "rows must be an integer or null, got 'ten'"),
        (["data.text=nowhere.txt"], "text needs a tokenizer, and the model came without one"),
        (["trainer.resume=x"], "transcode goes on by itself"),
        (["trainer.max_steps=-1", "task.schedule=cosine"], "the training has no end"),
    ],
)
def test_mistakes_end_in_one_sentence(train, arguments, message):
    code, out, err = train("output=run", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not Path("run/transcoder").exists()


def test_train_or_evaluate(command):
    for arguments, got in (([], ""), (["measure"], "measure"), (["k=3"], "k=3")):
        code, _, err = command("transcode", *arguments)
        expected = f"circuitkeep: `circuitkeep transcode train` or `evaluate`? got {got!r}\n"
        assert (code, err) == (2, expected)
    code, _, err = command("transcode", "action=measure", "model.path=x")
    assert code == 2
    assert "there is no transcode measure; train or evaluate" in err


def test_mistakes_in_measuring_end_in_one_sentence(train, command, models):
    def evaluate(*more, model="tiny"):
        path = f"model.path={models / model}"
        code, _, err = command("transcode", "evaluate", path, "data.length=16", *more)
        assert (code, err.count("\n")) == (2, 1)
        return err

    assert "transcoder is not set: add transcoder=FOLDER" in evaluate()
    assert "no folder of a transcoder at nowhere" in evaluate("transcoder=nowhere")
    Path("empty").mkdir()
    assert "empty holds no transcoder" in evaluate("transcoder=empty")
    assert train("output=run")[0] == 0
    found = evaluate("transcoder=run/transcoder", "data.held_out_rows=2", model="one-layer")
    assert "a model of 2 layers of width 64, this model has 1 of width 32" in found
    shutil.rmtree("run/transcoder/../logs")
    next(Path("run/transcoder").glob("W_dec_1*")).unlink()
    assert "holds no whole transcoder" in evaluate("transcoder=run/transcoder")


@pytest.mark.slow
def test_a_killed_training_goes_on_exactly(tmp_path, models):
    def start(output):
        arguments = [f"model.path={models / 'tiny'}", *SMALL, "steps=400", f"output={output}"]
        code = "from circuitkeep.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "transcode", "train", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait(timeout=300) == 0
    killed = start("cut")
    while not (tmp_path / "cut/checkpoints/last.ckpt").is_file():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert not (tmp_path / "cut/report.json").exists()
    assert start("cut").wait(timeout=300) == 0
    assert json.loads((tmp_path / "cut/report.json").read_text())["resumed"]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
