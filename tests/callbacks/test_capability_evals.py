import math

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

from circuitkeep.callbacks.capability import CapabilityEvals, share_of_batches
from circuitkeep.capture.models import build_embedded
from circuitkeep.evals.capability import capability_sums, evaluate_capability
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.repetition import RepeatedSegments


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


def fit(callback, data, model=None, loggers=(), ckpt_path=None, callbacks=(), **options):
    trainer = Trainer(
        accelerator="cpu",
        logger=list(loggers),
        callbacks=[callback, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )
    task = CausalLM(model or build_embedded(0), lr=3e-3)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def test_measures_at_0_every_n_and_at_validation():
    data = KeyValueMap(40, 16, batch_size=8)
    aside = RepeatedSegments(train_rows=1, val_rows=16, batch_size=8)
    batches = list(aside.val_dataloader())
    model = build_embedded(0)
    before = evaluate_capability(model, data.val_dataloader())
    loggers = [Recorder(), Recorder()]
    callback = CapabilityEvals({"task": data, "aside": batches}, every_n_steps=2)
    fit(callback, data, model, loggers)
    entries = loggers[0].entries
    assert entries == loggers[1].entries
    # 5 steps: 0 before, 2 and 4 on the way, 5 with the validation at the end of the epoch.
    assert [step for step, _ in entries] == [0, 2, 4, 5]
    assert set(entries[0][1]) == {
        f"capability/{name}/{quantity}"
        for name in ("task", "aside")
        for quantity in ("loss_nats", "perplexity", "accuracy")
    }
    assert entries[0][1]["capability/task/loss_nats"] == before["loss_nats"]
    after = evaluate_capability(model, data.val_dataloader())
    assert callback.latest["task"] == after
    assert entries[-1][1]["capability/task/loss_nats"] == after["loss_nats"]
    assert after["loss_nats"] < before["loss_nats"]


def test_accumulated_batches_are_not_measured_twice():
    recorder = Recorder()
    data = KeyValueMap(64, 16, batch_size=8)
    callback = CapabilityEvals({"task": data}, every_n_steps=1, at_validation=False)
    fit(callback, data, loggers=[recorder], accumulate_grad_batches=2)
    assert [step for step, _ in recorder.entries] == [0, 1, 2, 3, 4]


def test_the_run_is_the_same_without_it():
    results = []
    for datasets in ({}, {"task": KeyValueMap(40, 16, batch_size=8)}):
        torch.manual_seed(0)
        model = build_embedded(0)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        fit(CapabilityEvals(datasets, every_n_steps=1), KeyValueMap(40, 16, batch_size=8), model)
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_does_not_measure_the_start_again(tmp_path):
    data = KeyValueMap(40, 16, batch_size=8)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    first = CapabilityEvals({"task": data}, every_n_steps=2, at_validation=False)
    fit(first, data, callbacks=[saving], enable_checkpointing=True, max_steps=2)
    recorder = Recorder()
    second = CapabilityEvals({"task": data}, every_n_steps=2, at_validation=False)
    fit(second, data, loggers=[recorder], ckpt_path=tmp_path / "step=2.ckpt", max_steps=4)
    assert [step for step, _ in recorder.entries] == [4]


def test_max_batches():
    data = KeyValueMap(8, 32, batch_size=8)
    callback = CapabilityEvals({"task": data}, max_batches=2)
    fit(callback, data)
    assert callback.latest["task"]["tokens"] == 2 * 8 * 10


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_shares_of_processes_add_up(ranks):
    model = build_embedded(0)
    batches = list(KeyValueMap(8, 25, batch_size=5).val_dataloader())
    shares = [list(share_of_batches(batches, rank, ranks)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {math.ceil(5 / ranks)}
    total = sum(capability_sums(model, share) for share in shares)
    torch.testing.assert_close(total, capability_sums(model, batches))
    assert [len(list(share_of_batches(batches, r, ranks, 2))) for r in range(ranks)] == [
        math.ceil(2 / ranks)
    ] * ranks


def test_mistakes_show_before_the_training():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        CapabilityEvals({}, every_n_steps=0)

    class NoValidation(KeyValueMap):
        def val_dataloader(self):
            return []

    data = KeyValueMap(8, 8)
    with pytest.raises(ValueError, match="'aside' must have one validation loader"):
        fit(CapabilityEvals({"aside": NoValidation(8, 8)}), data)

    class Headless(LightningModule):
        pass

    with pytest.raises(ValueError, match="Headless holds neither"):
        CapabilityEvals({}).setup(Trainer(accelerator="cpu", logger=False), Headless(), "fit")
