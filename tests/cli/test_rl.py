"""Rewards and preferences from the command line, on models of a few thousand parameters."""

import csv
import json

import pytest

# Untrained models have no effect to keep, and say so in a warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not logged")


def columns(folder):
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("experiment", ["embedded_grpo", "embedded_dpo"])
def test_the_experiments(command, train, tmp_path, experiment):
    code, stdout, stderr = command(
        *(argument for argument in train if argument != "data=key_value"),
        f"experiment={experiment}",
        "model=hf",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "data.batch_size=4",
        "evals.datasets.repetition.val_rows=8",
    )
    assert code == 0, stderr
    assert "model saved in run/model" in stdout
    found = columns(tmp_path / "run")
    assert {"circuit/ind/behaviour_retention", "circuit/ind/penalty"} <= found
    logged = {"embedded_grpo": "reward", "embedded_dpo": "accuracy"}[experiment]
    assert {f"train/{logged}", f"val/{logged}", "capability/repetition/accuracy"} <= found


def text(models, path, *arguments):
    return (
        "train",
        f"model.path={models / 'text'}",
        f"data.train={path}",
        "data.validation=0.25",
        "trainer.accelerator=cpu",
        "trainer.max_steps=1",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "output=run",
        *arguments,
    )


@pytest.mark.parametrize("task", ["grpo", "reinforce"])
def test_rewards_of_text(command, models, tmp_path, task):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"w{i} w2", "answer": "w3"} for i in range(8)))
    code, _, stderr = command(
        *text(models, path, "data=prompts", f"task={task}", "task.sampling.max_new_tokens=3"),
        "+task.rewards.word={_target_: circuitkeep.tasks.rewards.PatternMatch, pattern: w1}",
        "task.reward_weights={word: 0.5}",
    )
    assert code == 0, stderr
    names = ("reward", "reward/answer", "reward/word", "reward_std", "completion_tokens")
    found = columns(tmp_path / "run")
    assert {f"train/{name}" for name in (*names, "fraction_without_advantage")} <= found


def test_preferences_of_text(command, models, tmp_path):
    pair = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}
    path = write(tmp_path / "a.jsonl", *[pair] * 8)
    arguments = text(models, path, "data=preferences", "task=dpo", "data.max_length=20")
    code, _, stderr = command(*arguments)
    assert code == 0, stderr
    assert {"train/loss_nats", "train/accuracy", "train/margin"} <= columns(tmp_path / "run")
    write(path, pair, {**pair, "rejected": ""})
    code, _, stderr = command(*arguments)
    assert code == 2
    assert stderr.count("\n") == 1
    assert "a.jsonl:2: 'rejected' is empty; leave the line out" in stderr


SMALL = {
    "dpo": ["pairs=4", "val_pairs=4", "prompt_tokens=9", "completion_tokens=9"],
    "grpo": [],
}


@pytest.mark.parametrize(("task", "logged"), [("dpo", "accuracy"), ("grpo", "reward")])
def test_plain_text_is_all_they_need(command, models, tmp_path, task, logged):
    """Without the circuit, which only stories260k has the heads for."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(" ".join(f"w{i % 30}" for i in range(j, j + 5)) for j in range(60)))
    code, _, stderr = command(
        *text(models, path, f"experiment=stories260k_{task}", "circuit=none"),
        "data.batch_size=4",
        "trainer.val_check_interval=1",
        *(f"data.{setting}" for setting in SMALL[task]),
    )
    assert code == 0, stderr
    assert {f"train/{logged}", f"val/{logged}"} <= columns(tmp_path / "run")


def test_a_reward_of_text_for_a_model_without_any(command, train):
    code, _, stderr = command(
        *(argument for argument in train if argument != "data=key_value"),
        "data=key_value_prompts",
        "data.pairs=3",
        "task=grpo",
        "circuit=none",
        "+task.rewards.word={_target_: circuitkeep.tasks.rewards.PatternMatch, pattern: w1}",
    )
    assert code == 2
    assert "a reward reads text, and the model came without a tokenizer" in stderr
