"""``circuitkeep train`` with a gate: what a scheduler sees."""

import pytest

pytestmark = [
    # Untrained models have no effect to keep, and say so in a warning.
    pytest.mark.filterwarnings("ignore:.*is not logged"),
    pytest.mark.filterwarnings("default:the gate tripped"),
]
# The first is not measured in an untrained model, which gives no right answer to retain.
INSTEAD = "~callbacks.gate.thresholds.behaviour_retention"
WATCH = "+callbacks.gate.thresholds.behaviour"
MODEL = "run/model/model.safetensors"


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_a_gate_that_ends_a_training_exits_with_3(action, command, train, tmp_path):
    arguments = (*train, f"callbacks.gate.action={action}", INSTEAD, f"{WATCH}=0.9")
    code, _, stderr = command(*arguments, "callbacks.monitor.every_n_steps=1")
    assert code == 3, stderr
    said = "a gate ended the training: circuit/ind/behaviour is "
    assert said in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert (tmp_path / MODEL).is_file(), "the model is saved all the same"


def test_a_gate_that_warns_lets_it_end_well(command, train):
    code, _, stderr = command(*train, "callbacks.gate.action=warn", INSTEAD, f"{WATCH}=0.9")
    assert code == 0
    assert "the gate tripped: circuit/ind/behaviour is" in stderr


def test_mistakes(command, train):
    code, _, stderr = command(*train, "callbacks.gate.action=halt")
    assert (code, "no action 'halt'" in stderr) == (2, True)
    code, _, stderr = command(*train, "callbacks.gate.action=stop", INSTEAD, f"{WATCH}s=0.9")
    assert code == 2
    assert "did you mean 'circuit/ind/behaviour'" in stderr
