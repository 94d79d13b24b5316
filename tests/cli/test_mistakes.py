"""Every mistake of a user ends in one sentence, exit code 2, and nothing half-written."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from circuitkeep.callbacks import checkpoint as checkpoint_io
from circuitkeep.capture.models import load_model
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.penalties import BehaviourKL

pytestmark = [
    # Untrained models have no effect to keep, and say so in a warning.
    pytest.mark.filterwarnings("ignore:.*is not logged"),
]


def assert_refused(result, wanted, folder):
    """Exit code 2, one line on stderr that matches, and no torn file or model in `folder`."""
    code, _, stderr = result
    # wandb dislikes an argument with which lightning 2.6 starts it.
    beside = ("circuitkeep: warning: ", "wandb: WARNING The anonymous setting")
    said = [line for line in stderr.splitlines() if not line.startswith(beside)]
    assert len(said) == 1, stderr
    assert re.search(wanted, said[0]), said[0]
    assert said[0].startswith("circuitkeep: ")
    assert code == 2
    hidden = [p for p in folder.rglob(".*") if p.name != ".hydra"]
    assert not hidden, "a temporary file was left behind"
    assert not list(folder.rglob("model"))


@pytest.fixture
def refused(command, tmp_path):
    """Runs the command, which must refuse with a sentence that matches `wanted`."""

    def check(wanted, *arguments):
        assert_refused(command(*arguments), wanted, tmp_path)

    return check


# The model


def test_no_model_is_named(refused):
    refused("model.path is not set: add model.path=DIRECTORY", "train", "data=key_value")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/nowhere/model", "there is no model directory at /nowhere/model"),
        ("gpt2-that-nobody-has", "cannot load a model from 'gpt2-that-nobody-has': We couldn't"),
        ("{models}/empty", "cannot load a model from '.*/empty'"),
        ("{models}/bert", "bert' is not a causal language model: .* BertForMaskedLM"),
        ("{models}/t5", "t5' is not a causal language model: .* T5ForConditionalGeneration"),
    ],
)
def test_the_model_is_none(refused, train, models, path, wanted):
    refused(wanted, *train, f"model.path={path.format(models=models)}")


def test_scan_and_compare_refuse_it_too(refused, models, circuit_file):
    wanted = "bert' is not a causal language model"
    refused(wanted, "scan", f"model.path={models}/bert")
    circuits = f"circuits=[{circuit_file()}]"
    refused(wanted, "compare", f"base={models}/bert", f"checkpoints=[{models}/tiny]", circuits)


def test_text_without_a_tokenizer(refused, models, tmp_path):
    (tmp_path / "text.txt").write_text("some text " * 100)
    refused(
        r"text needs a tokenizer.*model.tokenizer=PATH",
        *("train", f"model.path={models / 'tiny'}", "data.train=text.txt"),
    )


# Circuits


def test_a_head_out_of_range(refused, train, models, circuit_file):
    file = circuit_file(head="L7H0")
    wanted = "role 'induction': head L7H0 is outside the model, .* from L0H0 to L1H3"
    refused(wanted, *train, f"circuit={file}")
    refused(wanted, "scan", f"model.path={models / 'tiny'}", f"circuit={file}")
    paths = f"base={models / 'tiny'}", f"checkpoints=[{models / 'other'}]"
    refused(wanted, "compare", *paths, f"circuits=[{file}]")


def test_an_unknown_key_in_a_circuit(refused, train, circuit_file):
    file = circuit_file(behaviour="behavior")
    refused(
        r"ind.yaml:\d+: unknown key 'behavior'; did you mean 'behaviour'?",
        *train,
        f"circuit={file}",
    )


def test_an_unknown_role(refused, train, models, circuit_file):
    wanted = "not label the role 'inductoin'; did you mean 'induction'?"
    refused(wanted, *train, f"circuit={circuit_file(role='inductoin')}")
    refused(wanted, "scan", f"model.path={models / 'tiny'}", "roles=[inductoin]")


def test_a_probe_longer_than_the_context(refused, train, circuit_file):
    refused(
        "prompt of 100 tokens is longer than the model's context of 32",
        *train,
        f"circuit={circuit_file(length=100)}",
    )


def test_a_missing_circuit_file(refused, train):
    refused("no circuit file at .*/nothing.yaml; `circuitkeep scan", *train, "circuit=nothing.yaml")


# Data


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "", "a.txt is empty"),
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", '{"text": "fine"}\n{"text": oops}\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '{"text": "fine"}\n{"txt": "w1"}\n', "a.jsonl, line 2 has neither 'text' nor"),
    ],
)
def test_unusable_data(refused, models, tmp_path, name, content, wanted):
    (tmp_path / name).write_text(content)
    refused(wanted, "train", f"model.path={models / 'text'}", f"data.train={name}")


def test_no_data(refused, models):
    refused("data.train is not set: add data.train=FILE", "train", f"model.path={models / 'text'}")
    refused("no data file a.txt", "train", f"model.path={models / 'text'}", "data.train=a.txt")


# Where things are written


@pytest.mark.parametrize("place", ["/proc", "/proc/nowhere", "{file}/below"])
def test_an_output_that_cannot_be_written(refused, train, models, circuit_file, tmp_path, place):
    file = tmp_path / "file"
    file.write_text("")
    output = f"output={place.format(file=file)}"
    wanted = "cannot write the output folder .*; set output=DIRECTORY"
    refused(wanted, *train, output)
    refused(wanted, "scan", f"model.path={models / 'tiny'}", output)
    paths = f"base={models / 'tiny'}", f"checkpoints=[{models / 'other'}]"
    refused(wanted, "compare", *paths, f"circuits=[{circuit_file()}]", output)


def test_a_circuit_that_cannot_be_saved(refused, models):
    place = "save=/proc/found.yaml"
    refused("/proc/found.yaml$", "scan", f"model.path={models / 'tiny'}", "threshold=0.0", place)


def test_a_full_disk(refused, train, tmp_path, monkeypatch):
    save, written = checkpoint_io._save, []

    def save_twice(checkpoint, file):
        written.append(file.name)
        if len(written) > 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    monkeypatch.setattr(checkpoint_io, "_save", save_twice)
    refused("checkpoint was not written .No space left on device.; earlier ones", *train)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1


def test_a_disk_that_is_full_at_the_end(refused, train, tmp_path, monkeypatch):
    def save_pretrained(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_pretrained)
    refused("the model was not written to run/model: .*No space left on device", *train)
    assert_finite(tmp_path / "run/checkpoints/last.ckpt", 3)


def test_a_cache_that_cannot_be_written(refused):
    refused(": /proc/nowhere$", "demo", "cache_dir=/proc/nowhere")


# The run


def test_the_reference_of_another_model(command, train, models, tmp_path):
    code, _, _ = command(*train, "trainer.max_steps=1", "output=first")
    assert code == 0
    (reference,) = (tmp_path / "first/references").iterdir()
    arguments = f"model.path={models / 'other'}", f"callbacks.preservation.reference={reference}"
    before = reference.read_bytes()
    result = command(*train, *arguments)
    (tmp_path / "first/model").rename(tmp_path / "kept")
    assert_refused(result, "the reference at .* is of another model .*; delete it, or", tmp_path)
    assert reference.read_bytes() == before


def test_wandb_without_a_login(refused, train, monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))  # and its .netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    refused("WandbLogger cannot start: .*`wandb login`", *train, "logger=wandb")
    wandb.teardown()  # its settings outlive a failed start


def test_more_devices_than_there_are(refused, train):
    wanted = "trainer.devices=300 is more than this machine has: [0-9]+ CPU cores"
    refused(wanted, *train, "trainer.devices=300")


def test_a_gpu_where_there_is_none(refused, train, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    refused("trainer.accelerator=gpu, .*No supported gpu", *train, "trainer.accelerator=gpu")


def assert_finite(path, step):
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == step
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_loss_that_is_not_a_number(refused, train, tmp_path):
    options = "task.lr=1e30", "trainer.gradient_clip_val=null", "penalty=none"
    checkpoints = "callbacks.checkpoint.every_n_train_steps=1"
    refused("parameter model.* is not finite after step 2", *train, *options, checkpoints)
    assert_finite(tmp_path / "run/checkpoints/last.ckpt", 1)
    checkpoints = "callbacks.checkpoint.every_n_train_steps=9"
    refused("the training loss is nan at step [12]; ", *train, *options, checkpoints)


def test_a_penalty_that_is_not_a_number(refused, train, tmp_path, monkeypatch):
    forward, calls = BehaviourKL.forward, []

    def ruined(self, *arguments):
        calls.append(1)
        return forward(self, *arguments) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(BehaviourKL, "forward", ruined)
    refused(r"penalty for circuit 'ind' is nan at step 2 \(term 'behaviour'\)", *train)
    assert_finite(tmp_path / "run/checkpoints/last.ckpt", 2)


def test_a_negative_weight(refused, train):
    refused("weight must be >= 0, got -1", *train, "penalty.weight=-1.0")


def test_a_checkpoint_to_resume_from(refused, train, models, tmp_path, command):
    refused("no checkpoint at nothing.ckpt", *train, "trainer.resume=nothing.ckpt")
    (tmp_path / "text.ckpt").write_text("x")
    refused("text.ckpt is no checkpoint", *train, "trainer.resume=text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    refused("not the checkpoint of a training", *train, "trainer.resume=weights.ckpt")


def test_a_checkpoint_of_another_model(refused, train, models, command, tmp_path):
    command(*train, "penalty=none", "trainer.max_steps=1", "output=first")
    (tmp_path / "first/model").rename(tmp_path / "kept")
    refused(
        "resume=first/checkpoints/last.ckpt is of another model: size mismatch",
        *(*train, f"model.path={models / 'text'}"),
        "trainer.resume=first/checkpoints/last.ckpt",
    )


# The command line


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("trainer.max_step=3", "no key 'trainer.max_step'; did you mean 'max_steps'?"),
        ("trainr.max_steps=3", "no key 'trainr'; did you mean 'trainer'?"),
        ("pentaly=none", "no key 'pentaly'; did you mean 'penalty'?"),
        ("max_steps=3", "no key 'max_steps'; did you mean 'trainer.max_steps'?"),
        ("task.lr.x=3", "no key 'task.lr.x': task.lr has no keys"),
        ("trainer.strategy=ddp", r"no value yet: add it by \+trainer.strategy=VALUE"),
        ("+trainer.max_step=3", "Trainer has no argument 'max_step'; did you mean 'max_steps'?"),
        ("+task.learning_rate=3", "CausalLM has no argument 'learning_rate'; "),
        ("penalty=recomended", "no penalty=recomended; did you mean 'recommended'?"),
        ("experiment=dem", "no experiment=dem; did you mean 'demo'?"),
        ("~callbacks.moniter", "'callbacks.moniter' does not exist"),
        ("penalty.weight=much", "CircuitPreservation: weight must be a number, got 'much'"),
        ("trainer.max_steps=1.5", "Trainer: max_steps must be an integer, got 1.5"),
        ("trainer.max_steps", "'trainer.max_steps' cannot be read: write KEY=VALUE"),
        ("trainer.max_steps=[1,", r"'trainer.max_steps=\[1,' cannot be read: write KEY=VALUE"),
        ("--max-steps", "no option --max-steps: settings are written KEY=VALUE"),
    ],
)
def test_a_wrong_override(refused, train, override, wanted):
    refused(wanted.replace("?", r"\?"), *train, override)


def test_a_wrong_command(refused):
    refused(r"unknown command 'trian'; did you mean 'train'\?", "trian")


def test_arguments_are_checked_against_the_signature():
    def function(n: int, x: float | None, on: bool, anything: str | int, free=0, **rest: int):
        pass

    check_arguments(function, {"n": 1, "x": 2, "on": True, "anything": [], "other": "x"})
    check_arguments(function, {"x": None, "free": "x"})
    for name, value in {"n": True, "x": "1", "on": 1}.items():
        with pytest.raises(ValueError, match=f"function: {name} must be"):
            check_arguments(function, {name: value})


# Comparing


@pytest.fixture
def compared(models, circuit_file, tmp_path):
    """The arguments of a comparison, with some of them replaced."""

    def arguments(**changes):
        settings = {
            "base": models / "tiny",
            "checkpoints": f"[{models / 'other'}]",
            "circuits": f"[{circuit_file()}]",
            "rows": 8,
            "output": "compared",
            **changes,
        }
        return ("compare", *(f"{k}={v}" for k, v in settings.items() if v is not None))

    yield arguments
    assert not list(tmp_path.rglob("report.*"))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"base": None}, "base is not set: add base=DIRECTORY"),
        ({"checkpoints": None}, r"checkpoints is not set: add checkpoints=\[DIRECTORY"),
        ({"checkpoints": "[]"}, "name at least one checkpoint"),
        ({"checkpoints": "[/nowhere/model]"}, "there is no checkpoint at /nowhere/model"),
        ({"checkpoints": "[last.ckpt]"}, "there is no checkpoint at last.ckpt"),
        (
            {"checkpoints": "runs/typo", "trajectory": "true"},
            "there is no folder of checkpoints at runs/typo; trajectory=true takes a run's folder",
        ),
        ({"prompts": "['']"}, "a prompt is empty"),
        ({"figures": "pdf"}, "figures='pdf': must be svg, png, or null"),
        ({"replicates": "{a: [nobody]}"}, "replicates.a: there is no checkpoint 'nobody'"),
        ({"transfer.probes": "{x: {lenght: 8}}"}, "transfer.probes.x fits no circuit"),
        ({"circuits": "[]"}, "name at least one circuit"),
        (
            {"circuits": "[inductoin]"},
            "no circuit called 'inductoin' ships with circuitkeep; known",
        ),
        ({"circuits": "[nothing.yaml]"}, "no circuit file at nothing.yaml"),
        (
            {"checkpoints": "{models}/one-layer"},
            "'one-layer' .* is no checkpoint of the base model",
        ),
    ],
)
def test_a_comparison_of_nothing(refused, compared, models, changes, wanted):
    changes = {k: v and v.replace("{models}", str(models)) for k, v in changes.items()}
    refused(wanted, *compared(**changes))


def test_a_checkpoint_file_of_another_architecture(refused, compared, models, tmp_path):
    state = load_model(models / "one-layer").state_dict()
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "a.ckpt")
    refused("a.ckpt does not fit the architecture of .*/tiny", *compared(checkpoints="[a.ckpt]"))
    (tmp_path / "b.ckpt").write_bytes(b"torn")
    refused("b.ckpt is not a Lightning checkpoint", *compared(checkpoints="[b.ckpt]"))


# From outside


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit(1)])
def test_interrupted(command, models, monkeypatch, how):
    def stop(config):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise how  # noqa: B904

    monkeypatch.setattr("circuitkeep.cli.scan.run", stop)
    code, _, stderr = command("scan", f"model.path={models / 'tiny'}")
    assert (code, stderr) == (130, "circuitkeep: interrupted\n")


def test_a_fault_of_circuitkeep_keeps_its_traceback(command, models, monkeypatch):
    def fail(config):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("circuitkeep.cli.scan.run", fail)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        command("scan", f"model.path={models / 'tiny'}")


def test_a_traceback_on_demand(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match=r"model\.path is not set"):
        command("scan")


# In processes of their own


def start(arguments, folder, **options):
    return subprocess.Popen(
        [Path(sys.executable).with_name("circuitkeep"), *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_mistake_in_a_process_of_its_own(train, tmp_path):
    process = start([*train, "trainer.max_step=3"], tmp_path)
    stdout, stderr = process.communicate(timeout=100)
    assert stdout == ""
    assert_refused((process.returncode, stdout, stderr), "did you mean 'max_steps'", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed(how, train, command, tmp_path):
    long = (*train, "trainer.max_steps=30", "callbacks.checkpoint.every_n_train_steps=5")
    process = start([*long, "output=killed"], tmp_path)
    last = tmp_path / "killed/checkpoints/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=100)
    assert not (tmp_path / "killed/model").exists(), "the run was over before it was killed"
    if how == signal.SIGTERM:
        assert process.returncode == 143
        assert stderr.splitlines()[-1] == "circuitkeep: stopped by SIGTERM"
        assert not [p for p in tmp_path.rglob(".*") if p.name != ".hydra"]
    else:
        assert process.returncode == -9
    # Where it stands now and what it writes from now on may not be the same folder.
    last = last.rename(tmp_path / "last.ckpt")
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 30
    assert command(*long, f"trainer.resume={last}", "output=killed")[0] == 0
    assert command(*long, "output=whole")[0] == 0
    weights = "model/model.safetensors"
    whole = (tmp_path / "whole" / weights).read_bytes()
    assert (tmp_path / "killed" / weights).read_bytes() == whole
