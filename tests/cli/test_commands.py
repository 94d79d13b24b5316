"""Each command does what its help says, on models of a few thousand parameters."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import circuitkeep
from circuitkeep.callbacks.resume import random_state
from circuitkeep.capture.models import build_word_tokenizer, load_model
from circuitkeep.circuits import Head, load_circuit
from circuitkeep.cli.application import COMMANDS
from circuitkeep.cli.compare import check_tokenizers, named
from circuitkeep.tasks import indirect_objects
from circuitkeep.tasks.trained_once import Recipe

pytestmark = [
    # Untrained models have no effect to keep, and say so in a warning.
    pytest.mark.filterwarnings("ignore:.*is not logged"),
]


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def logged(folder, name="train/loss_nats"):
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture(scope="session")
def demo(train):
    """The demo's training in four steps, from an untrained model."""
    return (
        *train,
        "experiment=demo",
        "model=hf",
        "trainer.val_check_interval=2",
        "trainer.max_steps=4",
        "callbacks.checkpoint.every_n_train_steps=2",
        "data.train_rows=128",
    )


# Help


def test_help(command):
    code, stdout, _ = command("--help")
    assert code == 0
    for name, text in COMMANDS.items():
        assert f"{name} " in stdout
        assert text in stdout
    assert command() == (2, stdout, "")
    assert command("--version") == (0, f"{circuitkeep.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(command, name):
    code, stdout, _ = command(name, "--help")
    assert code == 0
    assert stdout.startswith(f"usage: circuitkeep {name} [KEY=VALUE ...]")
    # `watch` writes nothing.
    assert re.search(r"output: (outputs/|\$\{dir\}|\$\{oc.env:TMPDIR,/tmp\})", stdout)
    if name == "train":
        assert "penalty=...\n" in stdout
        assert "  patterns_only            The trap: " in stdout


def test_help_loads_no_torch():
    program = (
        "import sys; sys.argv = ['circuitkeep', 'train', '--help']\n"
        "from circuitkeep.cli import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'lightning', 'hydra') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.endswith("\n[]\n")


# Scan


def test_scan_writes_the_scores_and_a_circuit(command, models, tmp_path):
    code, stdout, _ = command(
        *("scan", f"model.path={models / 'tiny'}", "threshold=0.05", "rows=16"),
        *("save=found.yaml", "output=scanned", "roles=[induction]"),
    )
    assert code == 0
    content = json.loads((tmp_path / "scanned/scan.json").read_text())
    assert content["scan"]["scores"].keys() == {"induction"}
    scores = torch.tensor(content["scan"]["scores"]["induction"])
    assert scores.shape == (2, 4)
    assert content["scan"]["rows"] == 16
    circuit = load_circuit(tmp_path / "found.yaml")
    assert circuit.name == "found"
    (role,) = circuit.roles
    best = tuple(Head(*where) for where in (scores >= 0.05).nonzero().tolist())
    assert role.heads == best
    assert "induction" in stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.yaml", "scanned"]
    written = sorted(p.name for p in (tmp_path / "scanned").iterdir())
    assert written == ["scan.html", "scan.json"]


def test_what_scan_saves_train_guards(command, models, train, tmp_path):
    base = f"model.path={models / 'tiny'}"
    command("scan", base, "threshold=0.05", "rows=8", "save=found.yaml", "output=scanned")
    code, _, _ = command(*train, "circuit=found.yaml", "trainer.max_steps=1")
    assert code == 0
    assert "circuit/found/penalty" in (next(tmp_path.rglob("metrics.csv"))).read_text()


# Train and compare


def test_train_and_compare(command, demo, models, circuit_file, tmp_path):
    for weight in (0.0, 1.0):
        code, stdout, _ = command(*demo, f"penalty.weight={weight}", f"output=weight-{weight:g}")
        assert code == 0
        assert f"model saved in weight-{weight:g}/model" in stdout
    guarded = tmp_path / "weight-1"
    assert logged(guarded, "circuit/ind/penalty").keys() == {0, 1, 2, 3}
    assert logged(guarded, "circuit/ind/identity_retention").keys() == {0, 2, 4}
    assert not list((tmp_path / "weight-0").rglob("*.safetensors.*"))
    assert weights(guarded) != weights(tmp_path / "weight-0")
    assert load_model(guarded / "model").config.num_hidden_layers == 2

    code, stdout, _ = command(
        *("compare", f"base={models / 'tiny'}", f"circuits=[{circuit_file()}]", "rows=8"),
        "checkpoints=[weight-0/model,weight-1/checkpoints/last.ckpt]",
        *("evals=demo", "output=compared", "evals.datasets.repetition.val_rows=8"),
        *("evals.datasets.key-value.val_rows=8", "prompts=['0 5 9 5']"),
        *("replicates={all: [weight-0, last.ckpt]}", "transfer.trained_on={weight-0: maps}"),
    )
    assert code == 0
    report = json.loads((tmp_path / "compared/report.json").read_text())
    assert report["command"].startswith("circuitkeep compare base=")
    assert report["circuits"].keys() == {"ind"}
    assert [c["name"] for c in report["checkpoints"]] == ["weight-0", "last.ckpt"]
    for checkpoint in (report["base"], *report["checkpoints"]):
        assert checkpoint["capability"].keys() == {"key-value", "repetition"}
        measured = checkpoint["circuits"]["ind"]
        kinds = {f"{kind}_retention" for kind in ("identity", "causal", "behaviour")}
        assert kinds <= measured.keys()
        assert measured["role_scores"].keys() == {"induction", "previous-token"}
    page = (tmp_path / "compared/report.html").read_text()
    assert "weight-0" in page
    assert "last.ckpt" in stdout
    assert report["prompts"][0]["patterns"].keys() == {"base", "weight-0", "last.ckpt"}
    assert report["replicates"][0]["checkpoints"] == ["weight-0", "last.ckpt"]
    assert sorted(p.name for p in (tmp_path / "compared").iterdir()) == [
        "attention.csv",
        "report.csv",
        "report.html",
        "report.json",
    ]


def test_weight_0_is_as_without_the_callback(command, demo, tmp_path):
    assert command(*demo, "penalty.weight=0.0", "output=zero")[0] == 0
    assert command(*demo, "callbacks.preservation=null", "output=without")[0] == 0
    assert command(*demo, "penalty=none", "circuit=file", "output=none")[0] == 0
    bare = ("callbacks.preservation=null", "callbacks.monitor=null")
    assert command(*demo, *bare, "output=bare")[0] == 0
    assert len(logged(tmp_path / "zero")) == 4
    for other in ("without", "none", "bare"):
        assert logged(tmp_path / other) == logged(tmp_path / "zero")
        assert weights(tmp_path / other) == weights(tmp_path / "zero")
    assert not (tmp_path / "zero/references").exists()


def test_a_sweep_writes_separate_folders(command, train, tmp_path):
    code, stdout, stderr = command(*train, "-m", "penalty.weight=0.0,1.0", "output=sweep")
    assert code == 0, stderr
    assert stdout.count("model saved in ") == 2
    names = ["penalty.weight-0.0+seed-0", "penalty.weight-1.0+seed-0"]
    for name, penalties in zip(names, (0, 3), strict=True):
        folder = tmp_path / "sweep" / name
        assert (folder / "checkpoints/last.ckpt").is_file()
        assert len(logged(folder, "circuit/ind/penalty")) == penalties
    unguarded, guarded = (weights(tmp_path / "sweep" / name) for name in names)
    assert unguarded != guarded
    assert command(*train, "penalty.weight=1.0", "output=alone")[0] == 0
    assert guarded == weights(tmp_path / "alone")
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == names


def test_text(command, models, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"w{n * n % 31}" for n in range(600)))
    code, _, _ = command(
        *("train", f"model.path={models / 'text'}", "data.train=text.txt", "data.block_size=16"),
        *("evals.datasets.same=text.txt", "evals.block_size=16", "data.batch_size=4"),
        *("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
        *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "output=run"),
    )
    assert code == 0
    assert (tmp_path / "run/model/tokenizer.json").is_file()
    # Both hold out the same end of the text.
    seen = logged(tmp_path / "run", "capability/same/loss_nats")
    (last,) = logged(tmp_path / "run", "val/loss_nats").values()
    assert float(seen[2]) == pytest.approx(float(last), rel=1e-4)


def test_nothing_is_left_behind_in_the_process(command, train, monkeypatch):
    import warnings

    arguments, filters, show = list(sys.argv), list(warnings.filters), warnings.showwarning
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = random_state()["torch"]
    for override in ("trainer.max_step=1", "trainer.max_steps=1"):
        command(*train, override)
        assert sys.argv == arguments
        assert os.environ["HYDRA_FULL_ERROR"] != "1"
        assert warnings.filters == filters
        assert warnings.showwarning == show
    assert torch.equal(random_state()["torch"], before)


def test_lightning_can_start_the_command_again(command, models, monkeypatch):
    """With the command line as it was typed, and the folder of the first process."""
    seen = []
    monkeypatch.setattr(
        "circuitkeep.cli.scan.run", lambda config: seen.append((list(sys.argv), config.output))
    )
    monkeypatch.setattr(sys, "argv", ["/bin/circuitkeep", "scan", "rows=8"])
    command("scan", f"model.path={models / 'tiny'}", "output=${now:%f}", 'hydra.run.dir="first"')
    assert seen == [(["/bin/circuitkeep", "scan", "rows=8"], os.path.abspath("first"))]


# Names of checkpoints


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ("runs/a/model", ["a"]),
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["x/a/model", "y/a/model"], ["a", "y/a"]),
        (["a/checkpoints/last.ckpt", "b/checkpoints/last.ckpt"], ["last.ckpt", "b/last.ckpt"]),
        ({"one": "x"}, ["one"]),
    ],
)
def test_names_of_checkpoints(paths, names):
    assert list(named(paths)) == names


def test_checkpoints_may_be_a_pattern(tmp_path):
    for name in ("run-2", "run-10", "other"):
        (tmp_path / name / "model").mkdir(parents=True)
    found = named(str(tmp_path / "run-*" / "model"))
    assert found == {name: str(tmp_path / name / "model") for name in ("run-2", "run-10")}
    assert list(found) == ["run-2", "run-10"]
    with pytest.raises(ValueError, match=r"no checkpoint fits .*none-\*"):
        named([str(tmp_path / "none-*")])


def test_another_tokenizer_is_refused(tmp_path):
    base = build_word_tokenizer(["<s>", "<unk>", "cat", "dog"], "<s>", "<unk>")
    more = build_word_tokenizer(["<s>", "<unk>", "cat", "dog", "bird"], "<s>", "<unk>")
    other = build_word_tokenizer(["<s>", "<unk>", "dog", "cat"], "<s>", "<unk>")
    paths = {}
    for name, tokenizer in {"same": base, "more": more, "other": other}.items():
        paths[name] = str(tmp_path / name)
        tokenizer.save_pretrained(paths[name])
    check_tokenizers({"same": paths["same"], "more": paths["more"], "hub": "gpt2"}, base)
    check_tokenizers(paths, None)
    with pytest.raises(ValueError, match=r"'other' .* another tokenizer .* 'cat' is token 2 .* 3"):
        check_tokenizers(paths, base)


def test_a_trajectory_may_be_a_folder_or_a_list(tmp_path):
    for name in ("step=9.ckpt", "step=10.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    assert set(named(str(tmp_path), trajectory=True)) == {"step=9.ckpt", "step=10.ckpt"}
    paths = [str(tmp_path / "step=9.ckpt")]
    assert named(paths, trajectory=True) == {"step=9.ckpt": paths[0]}


def test_scan_says_how_sure_it_is_and_what_heads_do(command, models, tmp_path):
    code, stdout, _ = command(
        *("scan", f"model.path={models / 'tiny'}", "twins=4", "causal=true", "rows=12"),
        *("roles=[induction]", "threshold=0.5", "faithfulness=0.8", "lengths=[32]"),
        "output=scanned",
    )
    assert code == 0
    content = json.loads((tmp_path / "scanned/scan.json").read_text())
    scores = content["scan"]["scores"]["induction"]
    heads = {f"L{layer}H{i}" for layer, row in enumerate(scores) for i in range(len(row))}
    assert [len(row) for row in content["effects"]["ablation_nats"]] == [len(r) for r in scores]
    assert {finding["head"] for finding in content["findings"]} == heads
    assert not any(finding["reported"] for finding in content["findings"])  # it is untrained
    assert "not found" in stdout
    assert "best L" in stdout
    assert content["circuit"]["n_heads"] == len(heads)
    assert "on held-out rows" in stdout
    assert content["dilution"]["lengths"] == [32]
    assert "<h1" in (tmp_path / "scanned/scan.html").read_text(encoding="utf-8")


def test_no_head_is_saved_that_chance_would_give(command, models, tmp_path):
    code, _, stderr = command(
        *("scan", f"model.path={models / 'tiny'}", "twins=4", "rows=12", "roles=[induction]"),
        *("threshold=0.01", "save=found.yaml", "output=scanned"),
    )
    assert code == 2
    assert "no head was found in any role" in stderr
    assert not (tmp_path / "found.yaml").exists()
    assert (tmp_path / "scanned/scan.json").is_file(), "what was measured is kept"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("faithfulness=87", r"faithfulness must be in \(0, 1\), got 87.0"),
        ("lengths=[8]", "8 tokens are fewer than its own"),
        ("against=gpt2-small-io", "did you mean 'gpt2-small-ioi'"),
    ],
)
def test_scan_refuses(command, models, setting, message):
    code, _, stderr = command("scan", f"model.path={models / 'tiny'}", "rows=8", setting)
    assert code == 2
    assert re.search(message, stderr)


def test_scan_of_a_model_that_is_trained_on_first_use(command, tmp_path, monkeypatch):
    """It has no path in the config: the report names the folder in the cache."""
    monkeypatch.setattr(indirect_objects, "STANDARD", Recipe(steps=1))
    code, stdout, stderr = command(
        "scan", "model=ioi", "probe=ioi", "model.cache_dir=cache", "rows=12", "output=out"
    )
    assert code == 0, stderr
    assert "Epoch 0" in stdout + stderr  # the progress bar
    (folder,) = (tmp_path / "cache").iterdir()
    assert json.loads((tmp_path / "out/scan.json").read_text())["model"] == f"cache/{folder.name}"


def test_scan_against_a_circuit_lists_its_heads(command, models, circuit_file, tmp_path):
    arguments = f"model.path={models / 'tiny'}", f"against={circuit_file()}", "rows=8"
    code, stdout, _ = command("scan", *arguments, "output=scanned")
    assert code == 0
    assert "not tested" in stdout
    assert " of " in stdout
