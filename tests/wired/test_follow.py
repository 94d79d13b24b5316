"""A circuit that moved to other heads is found there, and held there."""

import csv
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.guard.follow import anchored, check_follow, moved, role_scores
from circuitkeep.penalties import BehaviourKL, HeadOutputDrift, PatternDivergence, Sum
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Fingerprint, capture_reference, observe

PENALTY = Sum({"pattern": PatternDivergence(), "output": HeadOutputDrift(), "kl": BehaviourKL()})
PROBE = RepeatedTokens(segment=(4, 8))


def roll(model, layer):
    """Each head of `layer` becomes the next one; what the model computes stays the same."""
    attention = model.transformer.h[layer].attn
    width, d_head = attention.embed_dim, attention.head_dim
    for part in range(3):
        columns = attention.c_attn.weight[:, part * width : (part + 1) * width]
        columns.copy_(columns.clone().roll(d_head, 1))
    attention.c_proj.weight.copy_(attention.c_proj.weight.clone().roll(d_head, 0))


def next_head(head):
    return Head(head.layer, (head.index + 1) % 4)


@pytest.fixture
def guarded(models):
    """The model, its circuit, and the reference of it."""
    wired = models.induction(3)
    roles = tuple(Role(name, tuple(sorted(heads))) for name, heads in wired.heads.items())
    circuit = Circuit("repeats", roles, {"_target_": "x"}, "accuracy", "wired")
    backend = attach(wired.model)
    rows = probe_rows(circuit, backend, None, "train", 40, 0, PROBE)
    kept = Fingerprint(*["x"] * 5)
    reference = capture_reference(backend, circuit, rows, PENALTY.needs, False, kept)
    return wired.model, circuit, reference


def penalty_of(model, circuit, reference):
    backend = attach(model)
    rows, before = reference.select(torch.arange(40), backend.device)
    now, _ = observe(backend, rows, circuit, PENALTY.needs)
    return {name: x.item() for name, x in PENALTY.terms_of(now, before, rows.labels).items()}


def test_a_circuit_that_stays_is_not_followed(guarded):
    model, circuit, reference = guarded
    scores = role_scores(attach(model), circuit, reference)
    assert moved(circuit, scores, scores) is None


@torch.no_grad()
def test_a_circuit_that_moved_is_held_where_it_is(guarded):
    model, circuit, reference = guarded
    base = role_scores(attach(model), circuit, reference)
    (finder,) = circuit.roles[1].heads
    roll(model, finder.layer)
    drift = penalty_of(model, circuit, reference)
    assert drift["kl"] < 1e-6
    assert drift["pattern"] > 1

    found = moved(circuit, role_scores(attach(model), circuit, reference), base)
    assert str(found) == f"induction: {finder} lost it and {next_head(finder)} took it up"
    assert found.circuit.roles[0] == circuit.roles[0]
    assert found.circuit.roles[1].heads == (next_head(finder),)

    anew = anchored(reference, circuit, found.circuit, attach(model), PENALTY.needs)
    assert anew.fingerprint != reference.fingerprint
    assert max(penalty_of(model, found.circuit, anew).values()) < 1e-6
    # The head that stayed is still held to the base.
    (mover,) = circuit.roles[0].heads
    roll(model, mover.layer)
    assert penalty_of(model, found.circuit, anew)["pattern"] > 1


@torch.no_grad()
def test_a_job_that_nobody_took_up_stays_with_the_named_heads(guarded):
    model, circuit, reference = guarded
    base = role_scores(attach(model), circuit, reference)
    (finder,) = circuit.roles[1].heads
    model.transformer.h[finder.layer].attn.c_attn.weight.zero_()
    assert moved(circuit, role_scores(attach(model), circuit, reference), base) is None


class Task(LightningModule):
    """Trains by a rate at which nothing moves; what moves heads is `Roll`."""

    def __init__(self, model):
        super().__init__()
        self.model = model.requires_grad_(True).train()

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch[0]).logits.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-12)


class Roll(Callback):
    """Moves the heads of a layer after the third step, and saves after the sixth."""

    def __init__(self, layer, path):
        self.layer, self.path = layer, path

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 3:
            with torch.no_grad():
                roll(pl_module.model, self.layer)
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)


def fit(folder, model, preservation, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[preservation, *callbacks],
        logger=CSVLogger(folder, "", options.pop("version", "first")),
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=8,
    )
    rows = DataLoader(TensorDataset(torch.randint(3, 26, (16, 12))), 2)
    trainer.fit(Task(model), rows, **options)
    metrics = Path(trainer.logger.log_dir) / "metrics.csv"
    with metrics.open(newline="") as file:
        key = "circuit/repeats/penalty/pattern"
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row[key]}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_in_a_training_and_after_a_resume(guarded, tmp_path):
    model, circuit, _ = guarded
    (finder,) = circuit.roles[1].heads
    options = {"probe": PROBE, "pool_rows": 40, "rows_per_step": 4, "follow_every_n_steps": 2}
    following = CircuitPreservation(circuit, PENALTY, **options)
    where = tmp_path / "sixth.ckpt"
    with pytest.warns(UserWarning, match=r"held on other heads \(step 4\): induction: .* took"):
        drift = fit(tmp_path, model, following, Roll(finder.layer, where))
    assert sorted(drift) == list(range(8))
    # Moved after three steps, which the next look, before the fifth, finds.
    assert drift[3] > 1
    assert max(drift[step] for step in (0, 1, 2, 4, 5, 6, 7)) < 1e-4
    assert following.circuit.roles[1].heads == (next_head(finder),)

    resumed = CircuitPreservation(circuit, PENALTY, **options)
    again = fit(tmp_path, model, resumed, ckpt_path=where, version="again", weights_only=True)
    assert again == pytest.approx({6: drift[6], 7: drift[7]}, abs=1e-6)
    assert resumed.circuit == following.circuit
    # Another training begins with the circuit as it is named.
    fit(tmp_path, model, resumed, version="new")
    assert resumed.circuit == circuit


def test_what_cannot_be_followed(guarded):
    _, circuit, _ = guarded
    with pytest.raises(ValueError, match="holds their effect, weights too"):
        check_follow(circuit, frozenset({"pattern", "weights", "effect"}))
    both = Circuit(
        "both", (*circuit.roles, Role("copy", circuit.roles[1].heads)), {}, "accuracy", "x"
    )
    with pytest.raises(ValueError, match="head of the role 'induction' has another role too"):
        check_follow(both, frozenset({"pattern"}))
    check_follow(circuit, PENALTY.needs)
