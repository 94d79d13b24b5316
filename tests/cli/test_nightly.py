"""``circuitkeep nightly``: what it measures, remembers and says."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import wandb

from circuitkeep.capture.models import load_model, save_model
from circuitkeep.nightly import suite
from circuitkeep.nightly.artifacts import fetched
from circuitkeep.nightly.history import History

CIRCUIT = """\
name: {name}
source: a test
roles:
  induction: [L1H0]
probe:
  _target_: circuitkeep.probes.RepeatedTokens
  exclude: [1]
  length: 32
behaviour: accuracy
tests:
  rows: 8
  seeds: [1, 2]
  score:
    induction: {threshold}
  causal: null
  retention:
    causal: null
    behaviour: null
"""


@pytest.fixture
def circuits(tmp_path):
    """A folder with the tests of one circuit, which an untrained model passes."""
    folder = tmp_path / "circuits"
    folder.mkdir()

    def write(name="ind", threshold=0.001):
        path = folder / f"{name}.circuit.yaml"
        path.write_text(CIRCUIT.format(name=name, threshold=threshold))
        return folder

    write()
    return write


@pytest.fixture
def nightly(command, circuits, models, monkeypatch, request):
    """Runs the command on one or more checkpoints; makes a page only if the test looks at it."""
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("circuitkeep.cli.nightly.render_page", lambda *_: "a page")

    def run(*more, checkpoints=None):
        given = [checkpoints or f"{{tiny:{models / 'tiny'}}}"]
        if any(text.startswith("checkpoints=") for text in more):
            given = []
        return command(
            *("nightly", "circuits=circuits", "history=h.sqlite", "output=out"),
            *(f"checkpoints={text}" for text in given),
            *more,
        )

    return run


@pytest.fixture
def pages():
    """Asks for real ones."""


@pytest.fixture
def nights(monkeypatch):
    """Lets nights pass: from now on it is another day."""

    def pass_to(day):
        monkeypatch.setattr("circuitkeep.cli.nightly.utc_now", lambda: f"{day}T03:00:00+00:00")

    return pass_to


def content(tmp_path):
    return History(tmp_path / "h.sqlite").read()


def test_a_night_is_measured_and_remembered(nightly, pages, models, tmp_path):
    code, out, _ = nightly(f"base={models / 'tiny'}")
    assert code == 0
    found = content(tmp_path)
    assert {one.check for _, one in found.measurements} == {
        *("score[induction]", "replicates[induction]"),
        *("retention[identity]", "no_migration"),
    }
    assert found.runs[0].base == str(models / "tiny")
    assert found.runs[0].command.startswith("circuitkeep nightly circuits=circuits")
    assert f"{len(found.measurements)} checks: " in out
    assert "out/nightly.html" in out
    assert "Circuits, night after night" in (tmp_path / "out/nightly.html").read_text()


def test_every_night_has_its_own_prompts(nightly, nights, tmp_path):
    for day in ("2026-01-01", "2026-01-01", "2026-01-02"):
        nights(day)
        nightly()
    first, again, other = (
        [one for run, one in content(tmp_path).measurements if run == number]
        for number in (1, 2, 3)
    )
    assert first == again
    assert first[0].seeds != other[0].seeds
    assert first[0].value != other[0].value
    nightly("redraw=false")
    assert content(tmp_path).measurements[-1][1].seeds == "1 2"


def test_a_failed_check_ends_with_1(nightly, circuits):
    circuits("wrong", 0.999)
    code, out, _ = nightly()
    assert code == 1
    line = next(line for line in out.splitlines() if "score[induction]" in line)
    assert re.search(r"failed\s+tiny\s+wrong\s+score\[induction\].*asked for 0.999", line)
    assert "2 checks failed" in out


def test_a_fall_below_the_history_ends_with_1_until_it_is_accepted(nightly, monkeypatch):
    once = functools.lru_cache(1)(lambda: suite.measure(*arguments))
    arguments, level = (), 0.95

    def at(*given):
        nonlocal arguments
        arguments = given
        found, events = once()
        scores = [one for one in found if one.check.startswith("score")]
        return [replace(one, value=level, error=0.01) for one in scores], events

    monkeypatch.setattr("circuitkeep.cli.nightly.measure", at)
    for _ in range(6):
        assert nightly("redraw=false")[0] == 0
    level = 0.7
    code, out, _ = nightly()
    assert code == 1
    assert re.search(r"fell\s+tiny\s+ind\s+score.*0.700.*-0.250\s+before 0.950", out)
    assert nightly()[0] == 1
    code, out, _ = nightly("accept='the new tokenizer'", "only.circuit=ind")
    assert code == 0
    assert "1 check: all passed" in out
    assert nightly()[0] == 0


def test_one_broken_checkpoint_costs_no_other_its_night(nightly, pages, models, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(models / "tiny", broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    names = f"{{broken:{broken},small:{models / 'one-layer'},tiny:{models / 'tiny'}}}"
    code, out, err = nightly(checkpoints=names)
    assert code == 1
    assert "Traceback" not in err
    assert "not measured: broken: cannot load a model" in out
    assert "not measured: small, ind: circuit 'ind', role 'induction': head L1H0 is outside" in out
    found = content(tmp_path)
    assert {one.checkpoint for _, one in found.measurements} == {"tiny"}
    assert [event.checkpoint for event in found.events] == ["broken", "small"]
    assert "head L1H0 is outside" in (tmp_path / "out/nightly.html").read_text()


def test_inconclusive_is_failed_where_that_is_wanted(nightly, monkeypatch):
    def undecided(*arguments):
        found, events = suite.measure(*arguments)
        return [replace(one, verdict="inconclusive") for one in found], events

    monkeypatch.setattr("circuitkeep.cli.nightly.measure", undecided)
    assert nightly()[0] == 0
    assert nightly("strict=true")[0] == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["circuits=null"], "circuits is not set: add circuits=[FILE.yaml,...]"),
        (["circuits=elsewhere"], "no circuit called 'elsewhere' ships with circuitkeep"),
        (["circuits=empty"], "there is no *.circuit.yaml in empty"),
        (["checkpoints=null"], "checkpoints is not set"),
        (["checkpoints=[]"], "checkpoints is not set"),
        (["checkpoints=[./gone]"], "checkpoint 'gone': there is nothing at ./gone"),
        (["checkpoints=[gone*]"], "no checkpoint fits 'gone*'"),
        (["checkpoints=[a/b/last.ckpt]"], "there is nothing at a/b/last.ckpt"),
        (["checkpoints=['wandb:team/model']"], "write wandb:ENTITY/PROJECT/ARTIFACT:ALIAS"),
        (["base=./gone"], "checkpoint 'base': there is nothing at ./gone"),
        (["nights=5"], "nights must be at least 10, got 5"),
        (["nights=often"], "nights must be an integer or a number, got 'often'"),
        (["history=circuits/ind.circuit.yaml"], "this is no SQLite file; name another"),
        (["accept=why"], "there is no history at h.sqlite; set history=FILE"),
        (["night=3"], "there is no key 'night'; did you mean 'nights'?"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    nightly, tmp_path, monkeypatch, more, sentence
):
    def never(*_, **__):
        raise AssertionError("this was measured")

    monkeypatch.setattr("circuitkeep.cli.nightly.measure", never)
    (tmp_path / "empty").mkdir()
    code, out, err = nightly(*more)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert not (tmp_path / "h.sqlite").exists()


def test_a_malformed_circuit_names_file_and_line(nightly, circuits):
    path = circuits("bad") / "bad.circuit.yaml"
    path.write_text(path.read_text().replace("  rows: 8", "  rows: few"))
    code, _, err = nightly()
    assert code == 2
    assert re.match(r"circuitkeep: circuits/bad.circuit.yaml:\d+: tests.rows must be at least", err)


def test_a_base_that_does_not_fit(nightly, models):
    code, out, _ = nightly(f"base={models / 'one-layer'}")
    assert code == 1
    assert "not measured: tiny, ind: circuit 'ind', role 'induction': head L1H0 is outside" in out


def test_what_is_accepted_must_be_there(nightly):
    nightly()
    code, _, err = nightly("accept=why", "only.checkpoint=tin")
    assert code == 2
    assert "only.checkpoint: the history has no 'tin'; did you mean 'tiny'?" in err
    assert nightly("accept=' '")[0] == 2


@pytest.mark.slow
def test_a_killed_night_leaves_the_history_as_it_was(nightly, models, circuits, tmp_path):
    assert nightly()[0] == 0
    before = content(tmp_path)
    many = ",".join(f"c{number}:{models / 'tiny'}" for number in range(500))
    program = """
import sys
from circuitkeep.cli import main
from circuitkeep.nightly import suite
examine = suite._examine
def told(examination, name, *more):
    examine(examination, name, *more)
    if name == "c2":
        print("measured", flush=True)
suite._examine = told
main(sys.argv[1:])
"""
    command = ["nightly", "circuits=circuits", f"checkpoints={{{many}}}", "history=h.sqlite"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *command, "output=out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline() == "measured\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert content(tmp_path) == before
    assert nightly()[0] == 0
    assert len(content(tmp_path).runs) == 2


class Artifact:
    """What W&B gives: a version, and files to download."""

    version = "v7"

    def __init__(self, files):
        self.files = files

    def download(self, root, skip_cache):
        assert skip_cache
        shutil.copytree(self.files, root, dirs_exist_ok=True)


@pytest.fixture
def artifact(monkeypatch):
    """Makes W&B hold one artifact."""
    asked = []

    def hold(files):
        class Api:
            def artifact(self, name):
                asked.append(name)
                if files is None:
                    raise wandb.errors.CommError("artifact not found")
                return Artifact(files)

        monkeypatch.setattr(wandb, "Api", Api)
        return asked

    return hold


def test_an_artifact_is_downloaded_and_called_by_its_version(nightly, models, artifact, tmp_path):
    asked = artifact(models / "tiny")
    code, _, _ = nightly(checkpoints="{best:'wandb:team/project/model:best'}")
    assert code == 0
    assert asked == ["team/project/model:best"]
    (_, one), *_ = content(tmp_path).measurements
    assert one.path == "wandb:team/project/model:v7"
    assert one.checkpoint == "best"


def test_what_an_artifact_may_hold(artifact, models, tmp_path):
    files = tmp_path / "files"
    (files / "model").mkdir(parents=True)
    artifact(files)
    name = "wandb:team/project/model:best"
    with pytest.raises(ValueError, match=r"no model directory and 0 \.ckpt files"), fetched(name):
        pass
    torch.save({}, files / "model.ckpt")
    with fetched(name) as (place, _):
        assert place.endswith("model.ckpt")
        folder = os.path.dirname(place)
    assert not os.path.exists(folder)
    save_model(load_model(models / "tiny"), files / "model")
    with fetched(name) as (place, _):
        assert os.path.isfile(f"{place}/config.json")
    assert json.loads((files / "model/config.json").read_text())


def test_an_artifact_that_is_not_there(nightly, artifact, models, tmp_path):
    artifact(None)
    names = f"{{best:'wandb:team/project/model:best',tiny:{models / 'tiny'}}}"
    code, out, _ = nightly(checkpoints=names)
    assert code == 1
    assert "cannot download the artifact team/project/model:best: artifact not found" in out
    assert {one.checkpoint for _, one in content(tmp_path).measurements} == {"tiny"}
