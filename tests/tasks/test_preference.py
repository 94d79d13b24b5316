"""Processes that share the reference out are in test_policy.py."""

import json
import math

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from circuitkeep.callbacks.resume import ExactResume
from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.key_value_prompts import KeyValuePreferences
from circuitkeep.tasks.preference import DPO
from circuitkeep.tasks.preferences import TextPreferences

# The resumed runs write no checkpoints of their own.
RESUMED = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def fit(task, data, *callbacks, ckpt_path=None, **options):
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_steps": 4,
            "limit_val_batches": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def small(**options):
    return KeyValuePreferences(**{"train_rows": 12, "val_rows": 4, "batch_size": 3, **options})


def text_log_prob(model, prompt, text):
    log_probs = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return sum(log_probs[len(prompt) + i - 1, token] for i, token in enumerate(text))


def test_the_loss_is_that_of_a_loop(tmp_path, tiny_model, word_tokenizer):
    """Texts of unequal length; dropout is on in training, and off for the reference."""
    pairs = [("w1 w2", "w3", "w4 w5 w6"), ("w7", "w8 w9", "w10"), ("w1", "w2", "w3 w4")]
    path = tmp_path / "a.jsonl"
    records = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = TextPreferences(path, None, word_tokenizer, batch_size=2)
    base, model = (tiny_model("gpt2", attn_pdrop=0.4, resid_pdrop=0.4) for _ in range(2))
    task = DPO(model, beta=0.3, lr=1e-2)
    fit(task, data, max_steps=2)
    model.eval()
    task.log = lambda *args, **kwargs: None
    batch = dict(data.train_rows.columns)
    total = 0.0
    with torch.no_grad():
        for row, texts in enumerate(pairs):
            prompt, *sides = ([int(w[1:]) for w in text.split()] for text in texts)
            gains = [
                text_log_prob(model, [32, *prompt], [*side, 33])
                - text_log_prob(base, [32, *prompt], [*side, 33])
                for side in sides
            ]
            total = total - math.log(torch.sigmoid(0.3 * (gains[0] - gains[1]))) / 3
            known = text_log_prob(base, [32, *prompt], [*sides[0], 33])
            assert_close(batch["reference"][row, 0], known)
        assert task.training_step(batch, 0).item() == pytest.approx(total, rel=1e-5)


class Recorded(DPO):
    def on_before_backward(self, loss):
        self.first = getattr(self, "first", loss.item())


def test_it_begins_at_ln_2_and_learns():
    task = Recorded(build_embedded(0), lr=3e-3)
    data = small(train_rows=640, batch_size=32, pairs=2, vocab_size=8)
    trainer = fit(task, data, max_steps=20, limit_val_batches=1)
    assert task.first == pytest.approx(math.log(2), rel=1e-5)
    metrics = trainer.callback_metrics
    assert metrics["train/loss_nats"] < 0.6
    assert metrics["train/accuracy"] > 0.7
    assert metrics["train/margin"] > 0
    assert metrics["val/accuracy"] > 0.7


@RESUMED
def test_the_reference_is_the_model_as_it_was_given(tmp_path):
    """Resumed, fitted again and validated after training."""
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, data = DPO(build_embedded(0), lr=1e-2), small()
    fit(whole, data, ExactResume(), kept, enable_checkpointing=True, limit_val_batches=1)
    reference = data.train_rows.columns["reference"].clone()
    resumed, again = DPO(build_embedded(0), lr=1e-2), small()
    trainer = fit(resumed, again, ExactResume(), ckpt_path=tmp_path / "step=2.ckpt")
    assert torch.equal(again.train_rows.columns["reference"], reference)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    trainer.validate(resumed, datamodule=again, verbose=False)
    fit(resumed, again, max_steps=1)
    assert torch.equal(again.train_rows.columns["reference"], reference)
    # Another task asks its own model, even about the same rows.
    fit(DPO(build_embedded(1)), again, max_steps=1)
    assert not torch.allclose(again.train_rows.columns["reference"], reference)


def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="beta must be above 0"):
        DPO(build_embedded(0), beta=0.0)
    with pytest.raises(ValueError, match="DPO needs a data module with pairs"):
        fit(DPO(build_embedded(0)), KeyValueMap(8, 4))
    message = r"chosen text in row 0 of train_rows has 34 tokens .* context of 32"
    with pytest.raises(ValueError, match=message):
        fit(DPO(build_embedded(0)), small(pairs=11))
