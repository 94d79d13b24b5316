"""Penalties on weights, attribution, composition, effects and geometry in a real training."""

from dataclasses import replace

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.capture import attach
from circuitkeep.capture.weights import head_maps
from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.functional.weights import product_drift
from circuitkeep.penalties import (
    AttributionDrift,
    CompositionDrift,
    EffectDrift,
    GeometryDrift,
    HeadWeightDrift,
    OVTransformDrift,
    PatternDivergence,
    Sum,
)
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Fingerprint, capture_reference, observe

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0), Head(1, 1))), Role("previous-token", (Head(0, 3),))),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
    manifolds=(Manifold("place", "position", 0, (1, 11)),),
)


class Task(LightningModule):
    """Anybody's module, which counts how often its model is run."""

    def __init__(self, model):
        super().__init__()
        self.model, self.runs = model, 0
        model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.runs += 1

    def training_step(self, batch, batch_idx):
        logits = self.model(input_ids=batch[0]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(model, folder, weight, penalty=None, steps=20):
    guard = CircuitPreservation(
        CIRCUIT, penalty or HeadWeightDrift(), weight=weight, rows_per_step=4, pool_rows=4
    )
    torch.manual_seed(0)
    task = Task(model.train())
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[guard],
    )
    tokens = torch.randint(0, 30, (80, 10), generator=torch.Generator().manual_seed(5))
    trainer.fit(task, DataLoader(TensorDataset(tokens), 4))
    return task


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_heads_drift_less_and_no_pass_is_added(kind, tiny_model, tmp_path):
    was = head_maps(attach(tiny_model(kind)), CIRCUIT.heads)
    drifts, runs = [], []
    for weight in (0.0, 10.0):
        task = trained(tiny_model(kind), tmp_path, weight)
        now = head_maps(attach(task.model), CIRCUIT.heads)
        drifts.append(product_drift(now.W_V, now.W_O, was.W_V, was.W_O).mean().item())
        runs.append(task.runs)
    assert drifts[1] < 0.7 * drifts[0]
    assert runs[1] - runs[0] <= 2, "attach looks once"


@pytest.mark.parametrize(
    ("penalty", "passes"),
    [
        (HeadWeightDrift(), 0),
        (CompositionDrift(), 0),
        (OVTransformDrift(), 0),
        (GeometryDrift(), 1),
        (AttributionDrift(), 1),
        (EffectDrift(), 2),
        (Sum({"weights": HeadWeightDrift(), "pattern": PatternDivergence()}), 1),
        (Sum({"effect": EffectDrift(), "pattern": PatternDivergence()}), 2),
        (Sum({"shape": GeometryDrift(), "ov": OVTransformDrift("turned")}), 1),
    ],
    ids=[
        *("weights", "composition", "ov", "geometry", "attribution", "effect"),
        *("with-pattern", "effect-pattern", "geometry-ov"),
    ],
)
def test_passes_per_step(penalty, passes, tiny_model, tmp_path):
    runs = [trained(tiny_model("gpt2"), tmp_path, 1.0, penalty, steps).runs for steps in (2, 6)]
    # One is the task's own. The reference is there already in the second run.
    reference = trained(tiny_model("gpt2"), tmp_path, 1.0, penalty, 2).runs
    assert (runs[1] - reference) / 4 == 1 + passes
    assert runs[0] >= reference


@pytest.mark.parametrize(
    ("penalty", "guarding"),
    [
        (CompositionDrift(), 1.0),
        (OVTransformDrift(), 1.0),
        (OVTransformDrift("turned"), 1.0),
        (GeometryDrift("shape"), 10.0),
        (GeometryDrift("rigid"), 1.0),
        (GeometryDrift("place"), 0.5),
        (AttributionDrift(), 1.0),
        (EffectDrift(), 1.0),
    ],
    ids=["composition", "ov", "ov-turned", "shape", "rigid", "place", "attribution", "effect"],
)
def test_the_drift_is_less_than_without(penalty, guarding, tiny_model, tmp_path):
    base = attach(tiny_model("gpt2"))
    rows = probe_rows(CIRCUIT, base, None, "train", 4, 0)
    kept = capture_reference(base, CIRCUIT, rows, penalty.needs, False, Fingerprint(*[""] * 5))
    part, before = kept.select(torch.arange(4), base.device)
    drifts = []
    for weight in (0.0, guarding):
        backend = attach(trained(tiny_model("gpt2"), tmp_path, weight, penalty).model.eval())
        now, _ = observe(backend, part, CIRCUIT, penalty.needs)
        drifts.append(penalty(now, before, part.labels).item())
    assert drifts[1] < 0.8 * drifts[0]


def test_frozen_heads_are_refused(tiny_model, tmp_path):
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.requires_grad_(False)
    with pytest.raises(ValueError, match="reaches no trainable parameter"):
        trained(model, tmp_path, 1.0)


def test_a_circuit_without_manifolds_is_refused_at_once():
    with pytest.raises(ValueError, match="holds manifolds, and circuit 'guarded' names none: add"):
        CircuitPreservation(replace(CIRCUIT, manifolds=()), GeometryDrift())


def test_a_manifold_without_a_shape_in_any_row_is_refused(tiny_model, tmp_path, monkeypatch):
    few = Manifold("place", "position", 0, (1, 2), dimensions=1)
    monkeypatch.setattr(f"{__name__}.CIRCUIT", replace(CIRCUIT, manifolds=(few,)))
    with pytest.raises(ValueError, match=r"kind='shape'.* more than 2 points, of 3"):
        trained(tiny_model("gpt2"), tmp_path, 1.0, GeometryDrift())
