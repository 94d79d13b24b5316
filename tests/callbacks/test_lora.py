"""LoRA as a callback, merged when the fit ends."""

import sys

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks.lora import LoRA


class Task(LightningModule):
    """Anybody's module, which trains what can be trained."""

    def __init__(self, model):
        super().__init__()
        self.model = model.train()

    def training_step(self, batch, batch_idx):
        logits = self.model(input_ids=batch[0]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Looks(Callback):
    """What the model says at the end of the training, before the adapters are merged."""

    def __init__(self, tokens, path=None):
        self.tokens, self.path = tokens, path

    def on_train_end(self, trainer, pl_module):
        model = pl_module.model
        self.trained = {n for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            self.logits = model.eval()(self.tokens).logits

    def on_train_epoch_end(self, trainer, *_):
        if self.path and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def fit(folder, task, *callbacks, ckpt_path=None, **options):
    tokens = torch.randint(0, 30, (16, 10), generator=torch.Generator().manual_seed(5))
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **options,
        }
    )
    trainer.fit(task, DataLoader(TensorDataset(tokens), 4), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft sets it right itself
def test_adapters_alone_are_trained_and_then_merged(kind, tiny_model, tokens, tmp_path):
    model, base = tiny_model(kind), tiny_model(kind)
    looks = Looks(tokens)
    torch.manual_seed(3)
    fit(tmp_path, Task(tiny_model(kind)))
    drawn = torch.rand(2)
    torch.manual_seed(3)
    fit(tmp_path, Task(model), LoRA(r=2), looks)
    assert torch.equal(torch.rand(2), drawn)
    assert looks.trained
    assert all("lora_" in name for name in looks.trained)
    with torch.no_grad():
        assert_close(model.eval()(tokens).logits, looks.logits, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")
    changed = 0
    for (name, after), before in zip(model.named_parameters(), base.parameters(), strict=True):
        moved = (after - before).detach()
        if moved.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name:
            assert torch.linalg.matrix_rank(moved, atol=1e-4) <= 2, name
            changed += bool(moved.any())
        else:
            assert not moved.any(), name
    assert changed == (8 if kind == "gpt2" else 14)


def test_a_resumed_run_goes_on_with_its_adapters(tiny_model, tokens, tmp_path):
    whole, path = Task(tiny_model("llama")), tmp_path / "saved.ckpt"
    fit(tmp_path, whole, LoRA(r=2), Looks(tokens, path), max_epochs=2)
    other = Task(tiny_model("llama"))
    fit(tmp_path, other, LoRA(r=2), Looks(tokens), ckpt_path=path, max_epochs=2)
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_mistakes_are_refused(tiny_model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="r must be at least 1, got 0"):
        LoRA(r=0)
    with pytest.raises(ValueError, match=r"peft refuses its settings: .*no_such"):
        fit(tmp_path, Task(tiny_model("llama")), LoRA(target_modules=["no_such"]))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="LoRA needs peft"):
        fit(tmp_path, Task(tiny_model("llama")), LoRA())
