import pytest
import torch
from lightning import Callback, Trainer

from circuitkeep.callbacks import CircuitGate, CircuitMonitor, CircuitPreservation, Constraint
from circuitkeep.callbacks import gate as gate_module
from circuitkeep.callbacks.periodic import Periodic
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM

CIRCUIT = Circuit(
    "repeats",
    (Role("induction", (Head(1, 2),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens"},
    "accuracy",
    "made up",
)
KEY = "circuit/repeats/behaviour_retention"


class Told(CircuitMonitor):
    """A monitor that measures what it is told to."""

    def __init__(self, values, every_n_steps=1):
        super().__init__(CIRCUIT, every_n_steps=every_n_steps, at_validation=False)
        self.values = values

    def measure(self, trainer, pl_module, step):
        value = self.values[step]
        return {} if value is None else {KEY: value, "circuit/repeats/behaviour": 1.0}

    def on_train_start(self, trainer, pl_module):
        Periodic.on_train_start(self, trainer, pl_module)

    def report(self, trainer, values, step):
        Periodic.report(self, trainer, values, step)


def fit(gate, values, more=(), folder=None, ckpt_path=None, module=None, **options):
    """As many steps as there are values after the first."""
    module = module or CausalLM(build_embedded(0), lr=0.01)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[gate, Told(values), *more],  # the gate first: the order must not matter
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_steps": len(values) - 1, **options},
    )
    data = KeyValueMap(80, 16, batch_size=4)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Weights(Callback):
    """The weights after every step."""

    def __init__(self):
        self.after = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after[trainer.global_step] = weights(pl_module)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_happens_while_all_is_well():
    gate = CircuitGate()
    plain = fit(CircuitGate(action="warn"), [1.0, 0.95, 0.9, 1.0])[1]
    trainer, module = fit(gate, [1.0, 0.95, 0.9, 1.0])
    assert trainer.global_step == 3
    assert (gate.ended, gate.tripped) == (False, {})
    assert same(weights(module), weights(plain))


def test_stop_after_patience():
    gate = CircuitGate(patience=2)
    with pytest.warns(UserWarning, match=r"the gate tripped: .*behaviour_retention is 0.4, below"):
        trainer, _ = fit(gate, [1.0, 0.5, 0.95, 0.5, 0.4, 0.9, 0.9])
    assert trainer.global_step == 4, "a good one in between counts from the start again"
    assert gate.ended
    assert gate.tripped == {"repeats": f"{KEY} is 0.4, below 0.9, at step 4"}


def test_a_tripped_gate_alerts(monkeypatch):
    sent = []
    monkeypatch.setattr(gate_module, "alert", lambda trainer, *told: sent.append(told))
    with pytest.warns(UserWarning, match="the gate tripped"):
        fit(CircuitGate(), [1.0, 0.5])
    ((title, text, level),) = sent
    assert (title, level) == ("Gate tripped: repeats", "ERROR")
    assert text.startswith(f"{KEY} is 0.5, below 0.9, at step 1")


def test_warn_goes_on_and_warns_anew():
    gate = CircuitGate(action="warn")
    with pytest.warns(UserWarning, match="the training goes on") as caught:
        trainer, _ = fit(gate, [1.0, 0.5, 0.4, 1.0, 0.3])
    assert trainer.global_step == 4
    told = [str(one.message) for one in caught if "the gate tripped" in str(one.message)]
    assert [text.split(" at step ")[1][0] for text in told] == ["1", "4"]
    assert not gate.ended


def test_what_is_no_longer_finite_is_below():
    gate = CircuitGate()
    with pytest.warns(UserWarning, match="is not finite any more"):
        trainer, _ = fit(gate, [1.0, None, 1.0])
    assert trainer.global_step == 1


def test_roll_back_to_the_last_good_weights(tmp_path):
    gate, seen = CircuitGate(action="roll_back"), Weights()
    with pytest.warns(UserWarning, match="with the weights of the last good measurement"):
        trainer, module = fit(gate, [1.0, 1.0, 1.0, 0.2, 1.0], [seen], tmp_path)
    assert trainer.global_step == 3
    assert same(weights(module), seen.after[2])
    assert not same(seen.after[2], seen.after[3])
    assert [path.name for path in (tmp_path / "gate").iterdir()] == ["last-good.ckpt"]


def test_a_base_that_is_bad_cannot_be_gone_back_to(tmp_path):
    gate, seen = CircuitGate(action="roll_back"), Weights()
    with pytest.warns(UserWarning, match="no measurement was good"):
        trainer, _ = fit(gate, [0.5, 0.2], [seen], tmp_path)
    assert gate.ended
    assert trainer.global_step <= 1


def guard(**settings):
    return CircuitPreservation(CIRCUIT, pool_rows=8, **settings)


def test_strengthen_a_fixed_weight(tmp_path):
    # The weight of the steps after the trip is what it would have been with a weight of 4.
    gate = CircuitGate(action="strengthen", factor=4.0)
    held = guard(weight=1.0, reference=tmp_path / "reference")
    with pytest.warns(UserWarning, match="held 4 times harder from here on"):
        _, module = fit(gate, [0.5, 1.0, 1.0], [held], tmp_path)
    strong = guard(weight=4.0, reference=tmp_path / "reference")
    _, expected = fit(CircuitGate(action="warn"), [1.0, 1.0, 1.0], [strong], tmp_path)
    assert same(weights(module), weights(expected))
    _, plain = fit(CircuitGate(action="warn"), [1.0, 1.0, 1.0], [guard(weight=1.0)], tmp_path)
    assert not same(weights(module), weights(plain))


def test_strengthen_again_and_again_and_resumed(tmp_path):
    gate = CircuitGate(action="strengthen", factor=2.0, patience=2)
    held = guard(weight=1.0)
    values = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    with pytest.warns(UserWarning, match="harder"):
        fit(gate, values, [held, Saved(4, tmp_path)], tmp_path)
    assert held.state_dict()["strength"] == 4
    gate, held = CircuitGate(action="strengthen", factor=2.0, patience=2), guard(weight=1.0)
    fit(gate, values, [held], tmp_path, ckpt_path=tmp_path / "4.ckpt")
    assert held.state_dict()["strength"] == 4


class Saved(Callback):
    """A checkpoint after one step."""

    def __init__(self, step, folder):
        self.step, self.folder = step, folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / f"{self.step}.ckpt")


def test_strengthen_a_constraint():
    assert Constraint(0.9).tightened(4.0).retention == pytest.approx(0.975)


def test_patience_is_resumed(tmp_path):
    values = [1.0, 1.0, 0.5, 0.5, 0.5]
    with pytest.warns(UserWarning, match="tripped"):
        fit(CircuitGate(patience=3), values, [Saved(3, tmp_path)], tmp_path)
    gate = CircuitGate(patience=3)
    with pytest.warns(UserWarning, match="tripped"):
        fit(gate, values, folder=tmp_path, ckpt_path=tmp_path / "3.ckpt")
    assert gate.tripped["repeats"].endswith("at step 4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "halt"}, "no action 'halt'"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"factor": 1.0}, "factor must be above 1, got 1.0"),
        ({"thresholds": {}}, "nothing is watched"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CircuitGate(**settings)


def test_what_is_not_measured_is_told_at_once():
    gate = CircuitGate({"behavior_retention": 0.9})
    with pytest.raises(ValueError, match=f"did you mean '{KEY}'"):
        fit(gate, [1.0, 1.0])


def test_no_monitor_and_no_guard():
    module = CausalLM(build_embedded(0), lr=0.01)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[CircuitGate()], max_steps=1)
    with pytest.raises(ValueError, match="looks at what a CircuitMonitor measures; add one"):
        trainer.fit(module, datamodule=KeyValueMap(8, 8))
    with pytest.raises(ValueError, match="needs a CircuitPreservation with a weight above 0"):
        fit(CircuitGate(action="strengthen"), [1.0, 1.0])
