"""``circuitkeep train`` with what people do instead of guarding a circuit, and with controls."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from circuitkeep.capture import attach
from circuitkeep.capture.models import load_model
from circuitkeep.capture.weights import head_weights

pytestmark = [
    # Untrained models have no effect to keep, and say so in a warning.
    pytest.mark.filterwarnings("ignore:.*is not logged"),
]
EWC_ROWS = "rival.rows=4"


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def logged(folder, name):
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("rival", "more", "key"),
    [
        ("l2sp", ["rival.weight=3.0"], "rival/l2sp"),
        ("ewc", [EWC_ROWS], "rival/ewc"),
        ("reference_kl", [], "rival/reference_kl"),
        ("frozen_heads", [], None),
        ("lora", [], None),
    ],
)
def test_a_rival_trains_and_saves_a_plain_model(rival, more, key, command, train, models, tmp_path):
    assert command(*train, "penalty=none", "output=plain")[0] == 0
    code, _, stderr = command(*train, "penalty=none", f"rival={rival}", *more)
    assert code == 0, stderr
    assert weights(tmp_path / "run") != weights(tmp_path / "plain")
    names = load_model(models / "tiny").state_dict().keys()
    assert load_model(tmp_path / "run/model").state_dict().keys() == names
    if key:
        values = logged(tmp_path / "run", key)
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert values[-1] > 0


@pytest.mark.parametrize("rival", ["l2sp", "lora"])
def test_a_resumed_rival_is_bit_identical(rival, command, train, tmp_path):
    arguments = (*train, "penalty=none", f"rival={rival}")
    assert command(*arguments, "output=whole")[0] == 0
    assert command(*arguments, "trainer.max_steps=2")[0] == 0
    code, _, stderr = command(*arguments, "trainer.resume=run/checkpoints/last.ckpt")
    assert code == 0, stderr
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_penalty_may_be_a_rival(command, train, tmp_path):
    code, _, stderr = command(*train, "penalty=rehearsal", "penalty.pool_rows=16")
    assert code == 0, stderr
    values = logged(tmp_path / "run", "circuit/ind/penalty/rehearsal")
    assert values[0] > 1  # a random model does not know the answers


@pytest.mark.parametrize(
    ("control", "name", "heads"),
    [("random_heads", "ind-random-3", 2), ("all_heads", "ind-all", 8)],
)
def test_a_control_holds_other_heads_and_measures_the_circuit(
    control, name, heads, command, train, tmp_path
):
    code, _, stderr = command(*train, f"control={control}", "control.seed=3")
    assert code == 0, stderr
    (kept,) = (tmp_path / "run/references").glob(f"{name}-*.safetensors")
    assert load_file(kept)["activations.pattern"].shape[1] == heads
    (metrics,) = (tmp_path / "run").glob("**/metrics.csv")
    text = metrics.read_text()
    assert f"circuit/{name}/penalty" in text
    assert "circuit/ind/behaviour" in text
    assert "circuit/ind/penalty" not in text


def test_frozen_heads_are_those_of_the_control(command, train, models, tmp_path):
    arguments = (*train, "penalty=none", "rival=frozen_heads", "control=all_heads")
    assert command(*arguments)[0] == 0
    before, after = (
        head_weights(attach(load_model(path))) for path in (models / "tiny", tmp_path / "run/model")
    )
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_mistakes_are_named(command, train):
    for arguments, said in (
        (["rival=ewc", "circuit.path=null"], "this rival needs a circuit"),
        (["rival=l2sp", "rival.weight=-1.0"], "weight must be 0 or more, got -1.0"),
        (["control.kind=all_head"], "control.kind='all_head'; did you mean 'all_heads'"),
    ):
        code, _, stderr = command(*train, *arguments)
        assert code == 2, arguments
        assert said in stderr
