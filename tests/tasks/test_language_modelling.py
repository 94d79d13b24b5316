import math

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from circuitkeep.capture.models import build_embedded
from circuitkeep.evals.capability import evaluate_capability
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM, learning_rate_factor

WITHOUT_TRAINER = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def trainer(**options):
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            **options,
        }
    )


@WITHOUT_TRAINER
def test_loss_is_the_models_own():
    model = build_embedded(0)
    data = KeyValueMap(8, 4, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    loss = CausalLM(model).training_step(batch, 0)
    own = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)


@WITHOUT_TRAINER
def test_a_batch_without_labels_trains_nothing():
    task = CausalLM(build_embedded(0))
    batch = next(iter(KeyValueMap(8, 4).train_dataloader()))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = task.training_step(batch, 0)
    assert loss.item() == 0.0
    loss.backward()
    assert not any(p.grad.any() for p in task.parameters())


def test_vectors_are_not_decayed_and_frozen_parameters_left_out():
    task = CausalLM(build_embedded(0), weight_decay=0.3, betas=[0.9, 0.98])
    task.model.lm_head.weight.requires_grad_(False)
    decayed, others = task.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(others["params"]) == sum("norm" in n for n, _ in task.named_parameters())
    assert not any(p is task.model.lm_head.weight for p in decayed["params"])
    assert decayed["betas"] == (0.9, 0.98)


def test_an_eval_mode_model_is_trained_in_training_mode():
    assert CausalLM(build_embedded(0).eval()).model.training


def test_schedules():
    rise = [learning_rate_factor(s, "constant", 4, None) for s in range(6)]
    assert rise == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [learning_rate_factor(s, "linear", 0, 4) for s in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert learning_rate_factor(6, "cosine", 2, 10) == pytest.approx(0.5)
    assert learning_rate_factor(99, "cosine", 2, 10) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        CausalLM(build_embedded(0), schedule="cosin")
    with pytest.raises(ValueError, match="needs an end"):
        trainer(max_epochs=-1, limit_val_batches=0).fit(
            CausalLM(build_embedded(0), schedule="linear"), datamodule=KeyValueMap(8, 4)
        )


def test_trains_and_validates_by_token():
    data = KeyValueMap(320, 40, batch_size=32)
    task = CausalLM(build_embedded(0), lr=3e-3, schedule="linear", warmup_steps=2)
    before = evaluate_capability(task.model, data.val_dataloader())
    t = trainer()
    t.fit(task, datamodule=data)
    after = evaluate_capability(task.model, data.val_dataloader())
    assert after["loss_nats"] < before["loss_nats"]
    assert t.callback_metrics["val/loss_nats"].item() == pytest.approx(after["loss_nats"])
    assert t.callback_metrics["val/accuracy"].item() == pytest.approx(after["accuracy"])
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


class Poison(Callback):
    """Ruins one batch's loss, or the weights after it."""

    def __init__(self, step, weights):
        self.step = step
        self.weights = weights

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step and not self.weights:
            pl_module.model.lm_head.weight.data[0, 0] = math.nan

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step and self.weights:
            pl_module.model.lm_head.weight.data[0, 0] = math.inf


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (False, "the training loss is nan at step 3"),
        (True, "model.lm_head.weight is not finite after step 3, so no checkpoint was written"),
    ],
)
def test_not_a_number_stops_the_run_and_spares_the_checkpoint(tmp_path, weights, message):
    kept = ModelCheckpoint(
        tmp_path, filename="kept", every_n_train_steps=1, save_last=True, save_top_k=1
    )
    t = trainer(
        enable_checkpointing=True, callbacks=[Poison(3, weights), kept], limit_val_batches=0
    )
    with pytest.raises(ValueError, match=message):
        t.fit(CausalLM(build_embedded(0)), datamodule=KeyValueMap(64, 8, batch_size=8))
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        assert state["global_step"] >= 2
        assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert list(tmp_path.glob("*.ckpt"))


def test_log_names(tmp_path):
    t = trainer(logger=CSVLogger(tmp_path), log_every_n_steps=1)
    t.fit(CausalLM(build_embedded(0)), datamodule=KeyValueMap(8, 8, batch_size=4))
    columns = set(
        (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split("\n")[0].split(",")
    )
    assert columns >= {"train/loss_nats", "val/loss_nats", "val/accuracy"}
