import copy
from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.capture.models import save_model
from circuitkeep.checks import Verdict, assert_circuit
from circuitkeep.circuits import save_circuit


@pytest.fixture
def file(tmp_path, wired_circuit):
    def write(**tests):
        path = tmp_path / "wired.circuit.yaml"
        save_circuit(replace(wired_circuit, tests={"rows": 24, "seeds": [1, 2], **tests}), path)
        return path

    return write


def test_a_whole_model_passes(tmp_path, file, wired_model):
    save_model(wired_model, tmp_path / "model")
    path = file(score={"induction": 0.8}, behaviour=0.8)
    for model in (tmp_path / "model", wired_model, attach(wired_model)):
        outcomes = assert_circuit(model, path, tmp_path / "model")
        assert {outcome.verdict for outcome in outcomes} == {Verdict.PASSED}


def test_a_broken_one_does_not(file, wired_model):
    broken = copy.deepcopy(wired_model)
    with torch.no_grad():
        broken.model.layers[1].self_attn.q_proj.weight[2 * 64 : 3 * 64] = 0
    path = file(score={"induction": 0.8, "previous-token": 0.8}, replicates=None, causal=None)
    with pytest.raises(AssertionError, match=r"wired score\[induction\] failed") as caught:
        assert_circuit(broken, path)
    assert "score[previous-token]" not in str(caught.value)


def test_strict(file, wired_model):
    path = file(behaviour=0.99)
    assert Verdict.INCONCLUSIVE in [one.verdict for one in assert_circuit(wired_model, path)]
    with pytest.raises(AssertionError, match="behaviour inconclusive"):
        assert_circuit(wired_model, path, strict=True)


def test_what_does_not_fit_is_told_with_its_line(file, wired_model):
    path = file()
    path.write_text(path.read_text().replace("L1H2", "L6H2"))
    with pytest.raises(ValueError, match=r"wired\.circuit\.yaml:\d+: .*L6H2 is outside"):
        assert_circuit(wired_model, path)
