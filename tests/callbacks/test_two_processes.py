"""What two processes do together. Run as a module, this file is one of them."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from circuitkeep.bench.strategies import start_workers
from circuitkeep.bench.strategies_cells import PENALTIES, SETTINGS, Cell
from circuitkeep.bench.strategies_expected import Guard, expected_gradients, largest_difference
from circuitkeep.bench.strategies_measure import prepare_references, reference_name
from circuitkeep.bench.strategies_task import BATCH_ROWS, Task, TaskSettings, batches, circuit
from circuitkeep.bench.strategies_trainer import strategy_of
from circuitkeep.callbacks import CircuitPreservation
from circuitkeep.capture import attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.models import save_model
from circuitkeep.circuits import Head
from circuitkeep.guard import follow
from circuitkeep.penalties import EffectDrift
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Fingerprint, capture_reference, load_reference

STRATEGIES = ("ddp", "fsdp", "fsdp2")
SETTING, MODEL, WEIGHT = SETTINGS["plain"], TaskSettings("llama"), 2.0
PENALTY = PENALTIES[SETTING.penalty]()


def main():
    """Train, under each strategy, by a penalty that follows heads and by one that ablates them."""
    folder, rank = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])
    own = follow.role_scores
    if rank:  # what rounding might do, and more: alone, this process would not move
        follow.role_scores = lambda *of: {role: 0 * x for role, x in own(*of).items()}
    found = {}
    for strategy in STRATEGIES:
        following = guard_of(PENALTY, follow_every_n_steps=1)
        state = torch.load(folder / "state.pt")
        # Each writes its new reference beside that of the base.
        base = str(folder / strategy / "base.safetensors")
        following.load_state_dict({**state, "reference": base})
        steps = fit(strategy, folder / strategy, rank, following)
        ablating = guard_of(EffectDrift())
        fit(strategy, folder / strategy, rank, ablating)
        kept = [guard.state_dict()["reference"] for guard in (following, ablating)]
        found[strategy] = following.circuit, steps, *kept
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def guard_of(penalty, **options):
    sizes = {"rows_per_step": SETTING.rows, "pool_rows": SETTING.rows}
    return CircuitPreservation(circuit(0), penalty, weight=WEIGHT, **sizes, **options)


def fit(strategy, folder, rank, guard):
    """The optimizer steps of a training in two processes, of which this is one."""
    task = Task(MODEL, seed=1)
    Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy_of(strategy, task),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        default_root_dir=folder,
        use_distributed_sampler=False,
        callbacks=[guard, Saved()],
    ).fit(task, DataLoader(TensorDataset(batches(2)[:, rank::2].flatten(0, 1)), BATCH_ROWS // 2))
    return task.recorded.steps


class Saved(Callback):
    """A checkpoint of the trained model, in shards where the weights are."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "trained.ckpt")


def kept_at(path):
    parts = Fingerprint(*[""] * 5)
    return load_reference(path, parts, tuple(vars(parts)))


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Of a run that is resumed: the base's reference, and its scores, by which a head has risen."""
    folder = tmp_path_factory.mktemp("references")
    prepare_references([Cell("llama", "plain", "ddp")], folder)
    path = folder / reference_name("llama", SETTING, 0)
    backend = attach(Task(MODEL, seed=1).language_model.eval())
    base = follow.role_scores(backend, circuit(0), kept_at(path))
    named = {role.name: role.heads for role in circuit(0).roles}
    scores = base["induction"]
    others = {
        Head(layer, index): scores[layer, index].item()
        for layer in range(2)
        for index in range(4)
        if Head(layer, index) not in named["induction"]
    }
    risen = max(others, key=lambda head: others[head])
    for head in named["induction"]:
        scores[head.layer, head.index] = others[risen]
    scores[risen.layer, risen.index] = 0
    follows = {
        "roles": {role: [str(head) for head in heads] for role, heads in named.items()},
        "base": {role: values.tolist() for role, values in base.items()},
        "looked": 0,
    }
    return {"reference": str(path), "follow": follows}, risen


@pytest.fixture(scope="module")
def trained(state, tmp_path_factory):
    """The folder in which both processes have trained under each strategy."""
    folder = tmp_path_factory.mktemp("followed")
    torch.save(state[0], folder / "state.pt")
    for strategy in STRATEGIES:
        (folder / strategy).mkdir()
        shutil.copy(state[0]["reference"], folder / strategy / "base.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        started = start_workers(Path(__file__).stem, folder, 2)
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], (folder / "stderr-0.txt").read_text()[-3000:]
    save_model(Task(MODEL, seed=1).language_model, folder / "base")
    return folder


@pytest.fixture(scope="module")
def found(trained):
    return [torch.load(trained / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_hold_the_same_heads_from_the_same_step(found, state, strategy):
    (here, steps, at, _), (there, _, also_at, _) = (process[strategy] for process in found)
    assert here == there
    assert at == also_at
    (induction, _) = here.roles
    assert state[1] in induction.heads
    assert here != circuit(0)
    for step, (held, path) in zip(
        steps, ((circuit(0), state[0]["reference"]), (here, at)), strict=True
    ):
        guard = Guard(held, PENALTY, kept_at(path), WEIGHT)
        expected = expected_gradients(Task(MODEL, seed=1), step, [guard], 1, None)
        assert largest_difference(step.gradients, expected) <= SETTING.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_ablation_costs_the_base_is_what_it_costs_in_one_process(found, strategy):
    backend = attach(Task(MODEL, seed=1).language_model.eval())
    rows = probe_rows(circuit(0), backend, None, "train", SETTING.rows, 0)
    alone = capture_reference(backend, circuit(0), rows, {"effect"}, False, Fingerprint(*[""] * 5))
    for process in found:
        kept = kept_at(process[strategy][3])
        assert_close(kept.rows.means, alone.rows.means)
        assert_close(kept.activations.effect, alone.activations.effect)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_their_shards_are_read(trained, strategy):
    # All three train on the same rows with the same penalty.
    base = trained / "base"
    assert (trained / strategy / "trained.ckpt" / ".metadata").is_file()
    before = load_checkpoint(base, base).state_dict()
    whole = load_checkpoint(trained / "ddp" / "trained.ckpt", base).state_dict()
    joined = load_checkpoint(trained / strategy / "trained.ckpt", base).state_dict()
    for name, value in whole.items():
        assert_close(joined[name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(joined[name], value) for name, value in before.items())


if __name__ == "__main__":
    main()
