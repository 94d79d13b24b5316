"""Manifolds in training: logged, kept in checkpoints, watched by the gate, and of no influence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer

from circuitkeep.callbacks import CircuitGate, CircuitMonitor, ExactResume
from circuitkeep.callbacks import monitor as monitor_module
from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.functional.manifolds import transform_drift
from circuitkeep.manifolds import manifold_rows
from circuitkeep.probing import probe_rows
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM

PLACES = Manifold("places", "position", 1, (1, 20), 1, 3)
PLAIN = Circuit(
    "repeats",
    (Role("induction", (Head(1, 2),)),),
    {"_target_": "circuitkeep.probes.OwnSamples", "length": 32},
    "accuracy",
    "made up",
)
CIRCUIT = replace(PLAIN, manifolds=(PLACES,))
KEY = "circuit/repeats/manifold/places/"
pytestmark = pytest.mark.filterwarnings("ignore:.*is not logged:UserWarning")


class Saving(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def fit(monitor, model, more=(), ckpt_path=None, steps=4):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[ExactResume(), monitor, *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_steps=steps,
    )
    trainer.fit(
        CausalLM(model, lr=1e-2),
        datamodule=KeyValueMap(40, 16, batch_size=8),
        ckpt_path=ckpt_path,
        weights_only=None if ckpt_path is None else True,
    )
    return trainer


def monitor(circuit=CIRCUIT):
    return CircuitMonitor(circuit, every_n_steps=1, at_validation=False, rows=16, causal=False)


def test_what_is_logged(tmp_path):
    model = build_embedded(0)
    backend = attach(model)
    batch = probe_rows(CIRCUIT, backend, None, "held_out", 16, 10_000)

    def points():
        return manifold_rows(backend, batch, [PLACES])["places"].means()

    before, found = points(), monitor()
    fit(found, model)
    first, last = found.history[0], found.history[-1]
    for figure in ("shape", "place"):
        assert first[KEY + figure] == pytest.approx(1, abs=1e-6)
    expected = transform_drift(before, points(), 3)._asdict()
    assert {key.removeprefix(KEY) for key in last if key.startswith(KEY)} == set(expected)
    for figure, value in expected.items():
        assert last[f"{KEY}{figure}"] == pytest.approx(value.item(), abs=1e-5)
    assert last[f"{KEY}place"] < 0.99


def test_a_resumed_run_goes_on_with_the_bases_manifold(tmp_path):
    whole = monitor()
    fit(whole, build_embedded(0), [Saving(tmp_path)])
    resumed = monitor()
    fit(resumed, build_embedded(0), ckpt_path=tmp_path / "step=2.ckpt")
    assert resumed.history == whole.history
    assert resumed.history[-1][f"{KEY}place"] != pytest.approx(1, abs=1e-6)
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["callbacks"]
    (own,) = [state[name] for name in state if name.startswith("CircuitMonitor")]
    kept = own["bases"]["repeats"]["manifolds"]["places"]
    assert kept.shape == (20, build_embedded(0).config.hidden_size)


def test_a_checkpoint_of_before_there_were_manifolds(tmp_path):
    fit(monitor(), build_embedded(0), [Saving(tmp_path)])
    path = Path(tmp_path / "step=2.ckpt")
    content = torch.load(path, weights_only=True)
    for name, state in content["callbacks"].items():
        if name.startswith("CircuitMonitor"):
            del state["bases"]["repeats"]["manifolds"]
    torch.save(content, path)
    resumed = monitor()
    fit(resumed, build_embedded(0), ckpt_path=path)
    assert f"{KEY}shape" not in resumed.history[-1]
    assert "circuit/repeats/identity_retention" in resumed.history[-1]


def test_the_training_is_bit_identical():
    weights = []
    for callbacks in ([], [monitor()]):
        model = build_embedded(0)
        fit(callbacks[0] if callbacks else Callback(), model)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_nothing_more_is_run_without_manifolds(monkeypatch):
    calls = []
    monkeypatch.setattr(
        monitor_module,
        "manifold_rows",
        lambda backend, batch, manifolds: calls.append(manifolds) or {},
    )
    fit(monitor(PLAIN), build_embedded(0), steps=1)
    assert calls == [(), ()]


def test_the_gate_sees_it():
    gate = CircuitGate({"manifold/places/place": 0.9999}, action="stop")
    other = replace(PLAIN, name="other")
    with pytest.warns(UserWarning, match=r"manifold/places/place is .*, below 0.9999"):
        trainer = fit(monitor([CIRCUIT, other]), build_embedded(0), [gate])
    assert trainer.global_step < 4
    assert set(gate.tripped) == {"repeats"}


def test_a_threshold_for_no_manifold():
    gate = CircuitGate({"manifold/place/shape": 0.9})
    with pytest.raises(ValueError, match=r"not measured; did you mean '.*manifold/places/shape'"):
        fit(monitor(), build_embedded(0), [gate])
