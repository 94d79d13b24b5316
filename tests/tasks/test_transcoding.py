"""Training transcoders. Run as a module, this file is one of two processes: see `main`."""

import os
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close
from torch.utils.data import DataLoader

from circuitkeep.bench.strategies import start_workers
from circuitkeep.callbacks import AtomicCheckpointIO, ExactResume
from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks.transcoding import TranscoderTask
from circuitkeep.tasks.transcoding_data import ActivationData
from circuitkeep.transcoders import quality
from circuitkeep.transcoders.harvest import Harvest
from circuitkeep.transcoders.loss import decoder_norms, sparsity

KINDS = {
    "batchtopk": {"activation": "batchtopk", "k": 3, "revive": 0.1, "dead_after": 70},
    "topk": {"activation": "topk", "k": 3, "revive": 0.1, "dead_after": 70},
    "jumprelu": {"activation": "jumprelu", "sparsity": 0.1, "wake": 1e-3},
    "relu": {"activation": "relu", "sparsity": 0.1},
}
TOGETHER = ("batchtopk", "jumprelu")
"""What two processes train; the others have nothing more to agree on."""
LAYERS, WIDTH, FEATURES = 2, 64, 24
WITHOUT_TRAINER = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def task(kind="batchtopk", **changes):
    given = {"n_features": FEATURES, "total_steps": 6, "warmup_steps": 1, **KINDS[kind]}
    return TranscoderTask(LAYERS, WIDTH, **{**given, **changes})


def trainer(folder, **options):
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_steps": 6,
            "default_root_dir": folder,
            "limit_val_batches": 0,
            **options,
        }
    )


def data(folder, batch_size=64, **changes):
    backend = attach(build_embedded(0).requires_grad_(False))
    given = {"rows": 24, "held_out_rows": 8, "length": 16, **changes}
    return ActivationData(backend, None, folder, batch_size=batch_size, **given)


class Gradients(Callback):
    """Keeps what the optimizer is given in the first steps."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append(found)


def fit(folder, kind, batch_size, **options):
    seen, own = Gradients(), task(kind)
    with torch.no_grad():
        own.transcoder.W_dec[0][0] *= 1e-4  # what is worth nothing is not among the best
    one = trainer(folder, callbacks=[seen], **options)
    one.fit(own, datamodule=data(folder, batch_size))
    return seen.steps, own.idle_tokens, own.cut


def main():
    """Train in two processes, of which this is one."""
    folder, rank = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])
    found = {}
    for kind in TOGETHER:
        found[kind] = fit(folder / kind, kind, 32, devices=2, strategy="ddp")
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_with_all_their_tokens(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        started = start_workers(Path(__file__).stem, tmp_path, 2)
        try:
            codes = [process.wait(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
    assert codes == [0, 0], (tmp_path / "stderr-0.txt").read_text()[-3000:]
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in TOGETHER:
        alone = fit(tmp_path / "alone" / kind, kind, 64)
        for steps, idle, cut in (both[0][kind], both[1][kind]):
            assert len(steps) == len(alone[0]) == 6
            for ours, expected in zip(steps, alone[0], strict=True):
                assert ours.keys() == expected.keys()
                for name, value in ours.items():
                    assert_close(value, expected[name], atol=1e-5, rtol=1e-3)
            # Which features are dead, and where BatchTopK cuts, is known to both.
            assert torch.equal(idle, alone[1])
            assert_close(cut, alone[2], equal_nan=True)
        assert idle.max() > 70 or kind == "jumprelu"


def batch(seed=0, tokens=40):
    draw = torch.randn(2, tokens, LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Harvest(*(3 * draw + 1))


def ready(kind="batchtopk", **changes):
    own = task(kind, **changes)
    for name in ("input", "output"):
        getattr(own, f"{name}_mean").fill_(1)
        getattr(own, f"{name}_rms").fill_(3)
    return own


@WITHOUT_TRAINER
def test_the_loss_by_hand():
    own, activations = ready("jumprelu", wake=0.0), batch()
    loss = own.training_step(activations, 0)
    read, written = ((values.transpose(0, 1) - 1) / 3 for values in activations)
    transcoder = own.transcoder
    pre = read @ transcoder.W_enc.transpose(1, 2)
    active = pre * (pre > 0.1)
    error = written - transcoder.decode(active)
    expected = sum(layer.square().mean() for layer in error)
    # After one step of 6, the sparsity has a sixth of its weight.
    norms = decoder_norms(transcoder.W_dec)
    assert_close(loss, expected + 0.1 / 6 * sparsity(active, norms, 4.0))


@WITHOUT_TRAINER
@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_transcoder_is_the_task_in_the_models_units(kind):
    own, activations = ready(kind), batch()
    own.training_step(activations, 0)  # BatchTopK learns where it cuts
    own.eval()
    seen = {}
    own.log = lambda name, value, **_: seen.update({name: float(value)})
    with torch.no_grad():
        own.validation_step(activations, 0)
    inputs, outputs = (values.transpose(0, 1) for values in activations)
    new = own.trained()
    error = (outputs - new(inputs)).square().mean((1, 2)) / 9
    assert seen["val/explained_variance"] == pytest.approx(1 - error.mean().item(), abs=1e-5)
    active = (new.encode(inputs) > 0).sum(-1).float().mean()
    assert seen["val/active"] == pytest.approx(active.item(), rel=1e-5)
    if kind in ("topk", "batchtopk"):
        assert seen["val/active"] == pytest.approx(3, abs=0.01)


@WITHOUT_TRAINER
def test_idle_tokens_are_counted_since_a_feature_was_last_active():
    own = ready("relu")
    with torch.no_grad():
        own.transcoder.b_enc[0, 0] = -1000
    own.training_step(batch(), 0)
    own.training_step(batch(1), 0)
    assert own.idle_tokens[0, 0] == 80
    assert own.idle_tokens[1, 0] == 0
    with torch.no_grad():
        own.transcoder.b_enc[0, 0] = 1000
    own.training_step(batch(2), 0)
    assert own.idle_tokens[0, 0] == 0


@WITHOUT_TRAINER
def test_dead_features_have_a_gradient_only_where_they_are_revived():
    for revive in (0.0, 0.1):
        own = ready("batchtopk", revive=revive, dead_after=10)
        with torch.no_grad():
            own.transcoder.W_dec[0][0] *= 1e-4  # what is worth nothing is not among the best
        own.idle_tokens[0, 0] = 10
        own.training_step(batch(), 0).backward()
        assert bool(own.transcoder.W_enc.grad[0, 0].any()) == bool(revive)


@pytest.mark.parametrize("kind", KINDS)
def test_training_explains_more_and_leaves_the_model_alone(kind, tmp_path):
    module = data(tmp_path)
    own = task(kind, total_steps=60, lr=1e-2)
    weights = [parameter.clone() for parameter in module.backend.model.parameters()]
    one = trainer(tmp_path, max_steps=60, limit_val_batches=1.0)
    one.fit(own, datamodule=module)
    found = quality.measure_quality(module.backend, own.trained(), *module.held_out)
    fresh = task(kind)
    fresh.scales = own.scales
    before = quality.measure_quality(module.backend, fresh.trained(), *module.held_out)
    assert sum(found.explained_variance) > sum(before.explained_variance) + 0.2
    assert found.replaced_nats < found.mean_ablated_nats
    assert all(map(torch.equal, weights, module.backend.model.parameters()))
    assert not any(name.startswith("backend") for name in own.state_dict())


def test_bf16_trains_too(tmp_path):
    own = task("batchtopk")
    trainer(tmp_path, precision="bf16-mixed").fit(own, datamodule=data(tmp_path))
    assert own.transcoder.W_enc.dtype == torch.float32
    assert all(value.isfinite().all() for value in own.state_dict().values())


class Cut(Callback):
    """Ends the training in the middle, as a crash would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            raise RuntimeError("cut")


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_a_training_that_was_cut_off_continues_bit_for_bit(kind, shards, tmp_path):
    kept = {"shards": shards, "rows_per_shard": 6, "shards_in_memory": 2}

    def go(folder, *callbacks, resume=None):
        own = task(kind)
        saving = ModelCheckpoint(folder, save_last=True, every_n_train_steps=3, save_top_k=0)
        one = trainer(
            folder,
            # 5 steps are an epoch: the order of the next one counts too.
            max_steps=8,
            enable_checkpointing=True,
            callbacks=[ExactResume(), saving, *callbacks],
            plugins=[AtomicCheckpointIO()],
        )
        one.fit(own, datamodule=data(folder, **kept), ckpt_path=resume, weights_only=True)
        return own.state_dict()

    whole = go(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="cut"):
        go(tmp_path / "cut", Cut())
    torch.manual_seed(123)
    resumed = go(tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value.nan_to_num(), resumed[name].nan_to_num()), name


def test_a_schedule_without_an_end_is_refused(tmp_path):
    own = task("jumprelu", total_steps=None)
    with pytest.raises(ValueError, match="the training has no end"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(own, datamodule=data(tmp_path))


def test_activations_of_unknown_scale_are_refused(tmp_path):
    own, loader = task(), DataLoader([0, 1], collate_fn=lambda _: batch())
    with pytest.raises(ValueError, match="scales of the activations are not known"):
        trainer(tmp_path).fit(own, loader, loader)
    own.scales = ready().scales
    trainer(tmp_path, max_steps=1).fit(own, loader, loader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "lineal"}, "unknown schedule 'lineal'; did you mean 'linear'"),
        ({"bandwidth": 0.0}, "bandwidth=0.0 must be positive"),
        ({"activation": "gelu"}, "activation='gelu': choose from"),
        ({"k": 25}, "k=25: choose 1 to n_features=24"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)


if __name__ == "__main__":
    main()
