"""Tasks of lm-evaluation-harness on the command line."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

TASK = """
task: words_chosen
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path):
    """The arguments that name a task in a folder of the user's."""
    rows = [
        {"text": f"w{row} w{row + 3} w{row}", "choices": [f"w{row + 3}", f"w{row + 9}"]}
        for row in range(12)
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine/task.yaml").write_text(TASK)
    (tmp_path / "text.txt").write_text(" ".join(f"w{n % 32}" for n in range(2000)))
    return (
        "evals.harness.tasks=[words_chosen]",
        "evals.harness.include_path=mine",
        f"evals.harness.cache_dir={tmp_path / 'answers'}",
    )


def test_in_training(command, models, tasks, tmp_path):
    code, _, stderr = command(
        *("train", f"model.path={models / 'text'}", "data.train=text.txt", "data.block_size=16"),
        *("trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"),
        *("trainer.log_every_n_steps=1", "evals.every_n_steps=1", "output=run", *tasks),
    )
    assert code == 0, stderr
    (path,) = (tmp_path / "run").rglob("metrics.csv")
    with path.open() as file:
        logged = [row for row in csv.DictReader(file) if row["capability/words_chosen/acc"]]
    assert [row["step"] for row in logged] == ["0", "1", "2"]
    assert all(0 <= float(row["capability/words_chosen/acc"]) <= 1 for row in logged)
    assert not (tmp_path / "answers").exists()


def test_in_compare(command, models, tasks, circuit_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (models / "text").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {k: v + torch.randn(v.shape, generator=generator) for k, v in weights.items()}
    save_file(moved, other / "model.safetensors", {"format": "pt"})
    arguments = (
        *("compare", f"base={models / 'text'}", "checkpoints=[other]", "rows=4"),
        *(f"circuits=[{circuit_file(length=24)}]", "output=compared", *tasks),
    )
    found = []
    for _ in range(2):
        code, stdout, stderr = command(*arguments)
        assert code == 0, stderr
        assert "words_chosen" in stdout
        report = json.loads((tmp_path / "compared/report.json").read_text())
        found.append([each["tasks"] for each in (report["base"], *report["checkpoints"])])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert set(found[0][0]["words_chosen"]) == {"acc", "acc_stderr"}
    assert len(list((tmp_path / "answers").glob("*.sqlite"))) == 2
    assert "words_chosen" in (tmp_path / "compared/report.html").read_text()


def test_a_model_without_tokenizer(command, train, tmp_path):
    code, _, stderr = command(*train, "evals.harness.tasks=[story_names]")
    assert code == 2
    assert stderr.splitlines()[-1].startswith(
        "circuitkeep: evals.harness.tasks: the tasks are text, and the model has no tokenizer"
    )
    assert not list(tmp_path.rglob("model"))


def test_data_that_are_not_there(command, models, tasks, tmp_path):
    (tmp_path / "mine/rows.jsonl").unlink()
    code, _, stderr = command(
        *("train", f"model.path={models / 'text'}", "data.train=text.txt", "data.block_size=16"),
        *("trainer.max_steps=2", "trainer.accelerator=cpu", "output=run", *tasks),
    )
    assert code == 2
    assert "the task 'words_chosen' cannot be loaded (FileNotFoundError" in stderr
    assert not list(tmp_path.rglob("model"))
