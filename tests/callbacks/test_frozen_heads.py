"""The named heads' weights stay, and nothing else does."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks.frozen_heads import FrozenHeads, head_masks
from circuitkeep.capture import attach
from circuitkeep.capture.weights import head_weights
from circuitkeep.circuits import Circuit, Head, Role

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0), Head(1, 3))), Role("previous-token", (Head(0, 2),))),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)
KINDS = ("gpt2", "llama", "neox", "opt")


class Task(LightningModule):
    """Momentum and weight decay move what has no gradient."""

    def __init__(self, model, automatic=True):
        super().__init__()
        self.model, self.automatic_optimization = model.train(), automatic

    def training_step(self, batch, batch_idx):
        logits = self.model(input_ids=batch[0]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def fit(folder, task, *callbacks, **options):
    tokens = torch.randint(0, 30, (16, 10), generator=torch.Generator().manual_seed(5))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(task, DataLoader(TensorDataset(tokens), 4))
    return trainer


def parts(model):
    """Copies of q, k, v, o and the biases of every head, as the forward pass uses them."""
    found = {}
    backend = attach(model)
    for layer in range(backend.n_layers):
        weights = head_weights(backend, [layer])
        for index in range(backend.n_heads):
            own = {name: getattr(weights, f"W_{name}")[0, index] for name in "QKVO"}
            for name in "QKV":
                if (bias := getattr(weights, f"b_{name}")) is not None:
                    own[f"b_{name}"] = bias[0, index]
            found[Head(layer, index)] = {k: v.detach().clone() for k, v in own.items()}
    return found


def moved(before, after):
    return {
        (head, name)
        for head in before
        for name in before[head]
        if not torch.equal(before[head][name], after[head][name])
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_heads_stay_bit_for_bit_and_the_others_move(kind, tiny_model, tmp_path):
    model = tiny_model(kind)
    before = parts(model)
    others = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = fit(tmp_path, Task(model), FrozenHeads(CIRCUIT))
    changed = moved(before, parts(model))
    names = set(before[Head(0, 0)])
    grouped = kind == "llama"  # two heads share keys and values
    for head, own in before.items():
        expected = set(own)
        if head in CIRCUIT.heads:
            expected = set()
        elif grouped and any(
            h.layer == head.layer and h.index // 2 == head.index // 2 for h in CIRCUIT.heads
        ):
            expected = names - {"K", "V"}
        assert {name for one, name in changed if one == head} == expected, head
    unmoved = {n for n, p in model.named_parameters() if torch.equal(others[n], p)}
    # Every parameter also holds what is not frozen, but for the two groups of the second layer.
    shared = {f"model.layers.1.self_attn.{name}_proj.weight" for name in "kv"}
    assert unmoved == (shared if grouped else set())
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize("options", [{"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("automatic", [True, False])
def test_under_other_settings_of_the_trainer(automatic, options, tiny_model, tmp_path):
    model = tiny_model("gpt2")
    before = parts(model)
    fit(tmp_path, Task(model, automatic), FrozenHeads(CIRCUIT), **(options if automatic else {}))
    changed = {head for head, _ in moved(before, parts(model))}
    assert changed == set(before) - set(CIRCUIT.heads)


def test_frozen_gradients_do_not_count_when_the_others_are_clipped(tiny_model, tmp_path):
    """With SGD and a clip, the whole step is as long as the clip, in what is not frozen."""

    class Plain(Task):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    model = tiny_model("gpt2")
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    fit(tmp_path, Plain(model), FrozenHeads(CIRCUIT), gradient_clip_val=0.01, limit_train_batches=1)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_masks_by_hand(tiny_model):
    model = tiny_model("gpt2")  # width 32, heads of 8, q k v fused
    masks = {id(p): mask for p, mask in head_masks(attach(model), CIRCUIT).items()}
    attention = model.transformer.h[0].attn
    fused = masks[id(attention.c_attn.weight)]
    columns = [i + part for part in (0, 32, 64) for i in range(16, 24)]
    assert fused.any(0).nonzero()[:, 0].tolist() == columns
    assert fused.sum() == 32 * 24
    assert masks[id(attention.c_attn.bias)].nonzero()[:, 0].tolist() == columns
    assert masks[id(attention.c_proj.weight)].any(1).nonzero()[:, 0].tolist() == [*range(16, 24)]
    assert id(attention.c_proj.bias) not in masks


def test_an_exception_leaves_the_optimizer_as_it_was(tiny_model, tmp_path):
    class Failing(Task):
        def on_train_batch_end(self, *_):
            raise RuntimeError("the user's own error")

    frozen, task = FrozenHeads(CIRCUIT), Failing(tiny_model("gpt2"))
    with pytest.raises(RuntimeError, match="own error"):
        fit(tmp_path, task, frozen)
    assert not task.trainer.optimizers[0]._optimizer_step_post_hooks


def test_mistakes_are_refused(tiny_model, tmp_path):
    outside = CIRCUIT.with_heads({"induction": [Head(7, 0)], "previous-token": [Head(0, 0)]}, "out")
    with pytest.raises(ValueError, match="head L7H0 is outside the model"):
        fit(tmp_path, Task(tiny_model("gpt2")), FrozenHeads(outside))
