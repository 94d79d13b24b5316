"""Tasks of lm-evaluation-harness asked in training; what they answer is tested beside `Harness`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from circuitkeep.callbacks.capability import CapabilityEvals
from circuitkeep.evals.harness import Harness
from circuitkeep.tasks.language_modelling import CausalLM

TASK = """
task: words_chosen
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


class Recorder(Logger):
    name = "recorder"
    version = 0

    def __init__(self):
        super().__init__()
        self.entries = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if any(key.startswith("capability/") for key in metrics):
            self.entries.append((step, metrics))


class Turned(CausalLM):
    """Its logits change sign after the first step; nothing else changes them."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.model.model.norm.weight.data.neg_()


class Sharded(CausalLM):
    """Under FSDP 2."""

    def configure_model(self):
        for module in (*self.model.model.layers, self.model):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


def words():
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    known = [*(f"w{number}" for number in range(32)), *special.values()]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def harness(folder):
    rows = [
        {
            "text": " ".join(f"w{(7 * row + 3 * place) % 32}" for place in range(6)),
            "choices": [f"w{(5 * row + k) % 32}" for k in range(3)],
        }
        for row in range(10)
    ]
    folder.mkdir(exist_ok=True)
    if not (folder / "task.yaml").exists():
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "task.yaml").write_text(TASK)
    return Harness("words_chosen", str(folder), batch_size=8)


def model(dropout=0.0):
    config = LlamaConfig(
        vocab_size=36,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def fit(callback, task, *loggers, **options):
    tokens = torch.randint(0, 32, (6, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x} for x in tokens]
    trainer = Trainer(
        accelerator="cpu",
        logger=list(loggers),
        callbacks=[] if callback is None else [callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=1,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(task, DataLoader(rows, batch_size=2, shuffle=True), DataLoader(rows[:2]))
    return trainer


def test_asked_on_schedule_and_logged(tmp_path):
    recorder, asked, learner = Recorder(), harness(tmp_path), model()
    before = asked.evaluate(learner, words())
    callback = CapabilityEvals({}, 2, False, harness=asked, tokenizer=words())
    fit(callback, Turned(learner, lr=0.0), recorder)
    assert [step for step, _ in recorder.entries] == [0, 2]
    first, last = (entry for _, entry in recorder.entries)
    assert first == {
        "capability/words_chosen/acc": before["words_chosen"]["acc"],
        "capability/words_chosen/acc_stderr": before["words_chosen"]["acc_stderr"],
    }
    assert callback.latest["words_chosen"]["acc"] == last["capability/words_chosen/acc"]
    after = asked.evaluate(learner, words())
    assert last["capability/words_chosen/acc"] == after["words_chosen"]["acc"]
    assert first != last


def test_the_run_is_the_same_without_it(tmp_path):
    found = []
    for with_tasks in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)
        given = {"harness": harness(tmp_path), "tokenizer": words()} if with_tasks else {}
        task = CausalLM(model(dropout=0.3), lr=0.1)
        fit(CapabilityEvals({}, 1, False, **given), task)
        weights = torch.cat([p.detach().flatten() for p in task.parameters()])
        found.append((weights, np.random.rand(), torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_mistakes_show_before_the_training(tmp_path):
    callback = CapabilityEvals({}, harness=harness(tmp_path))
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        fit(callback, CausalLM(model(), lr=0.1))
    assert not callback.latest
    with pytest.raises(ValueError, match="is the name of a data set and of a task"):
        CapabilityEvals({"words_chosen": []}, harness=harness(tmp_path), tokenizer=words())


def trained_in(strategy, folder):
    """What every step's evaluation found, in this process."""
    seen, kind = Recorder(), Sharded if strategy == "fsdp2" else CausalLM
    callback = CapabilityEvals({}, 1, False, harness=harness(folder), tokenizer=words())
    report = callback.report
    callback.report = lambda trainer, values, step: (
        seen.entries.append((step, values)),
        report(trainer, values, step),
    )
    how = {
        "one": {},
        "ddp": {"strategy": "ddp", "devices": 2},
        "fsdp2": {"strategy": ModelParallelStrategy(), "devices": 2},
    }
    fit(callback, kind(model(), lr=0.1), **how[strategy])
    return seen.entries


def main():
    """Train in two processes; each writes what it was told."""
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    found = trained_in(strategy, folder)
    rank = torch.distributed.get_rank()
    (folder / f"{strategy}-{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_processes_are_told_the_same(strategy, tmp_path):
    harness(tmp_path)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), strategy],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{strategy}-{n}.json").read_text()) for n in range(2))
    assert first == second
    assert len(first) > 2
    # Before the training the figures are those of one process.
    alone = harness(tmp_path).evaluate(model(), words())["words_chosen"]
    assert 0 < alone["acc"] < 1
    assert first[0] == [0, {f"capability/words_chosen/{k}": v for k, v in alone.items()}]


if __name__ == "__main__":
    main()
