import json

import pytest
import torch
from safetensors.torch import load_file

from circuitkeep.bench.checkpoints import CompareSuite, _write
from circuitkeep.bench.gpt2 import gpt2_config
from circuitkeep.bench.memory import peak_resident_bytes

TINY = {"layers": 2, "heads": 2, "d_model": 16, "vocab": 100, "rows": 4}


def test_a_process_per_comparison():
    told = []
    suite = CompareSuite(**TINY, checkpoints=(1, 3), distinct=2)
    findings = suite.run(lambda *one: told.append(one))
    content = json.loads(json.dumps(findings.content()))
    assert content["written"] == 2
    one, three = content["comparisons"]
    assert (one["checkpoints"], three["checkpoints"]) == (1, 3)
    assert [len(one["seconds"]), len(three["seconds"])] == [1, 3]
    assert min(one["seconds"] + three["seconds"]) > 0
    # Torch alone takes more than this.
    assert min(one["peak_bytes"], three["peak_bytes"]) > 100 * 2**20
    assert findings.shown()[0].row_count == 2
    assert [name for name, _, _ in told][:3] == ["writing base", "writing step0", "writing step1"]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2]


def test_checkpoints_are_near_the_base_and_differ(tmp_path):
    state = torch.random.get_rng_state()
    config = gpt2_config(1, 2, 16, 100)
    assert [path.name for path in _write(tmp_path, config, 2, 0)] == ["base", "step0", "step1"]
    assert torch.equal(torch.random.get_rng_state(), state)
    base, first, second = (
        load_file(tmp_path / name / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
        for name in ("base", "step0", "step1")
    )
    for before, after in ((base, first), (first, second)):
        moved = (after - before).std() / before.std()
        assert moved.item() == pytest.approx(0.02, rel=0.1)


def test_a_comparison_that_fails_is_told_of(monkeypatch):
    suite = CompareSuite(**{**TINY, "layers": 1}, checkpoints=(1,), distinct=1)
    monkeypatch.setattr("circuitkeep.bench.checkpoints.WORKER", "circuitkeep.bench.nothing")
    with pytest.raises(RuntimeError, match=r"comparison of 1 checkpoints failed: .*nothing"):
        suite.run(lambda *_: None)


def test_peak_memory_of_the_process():
    before = peak_resident_bytes()
    held = torch.ones(2**25)
    assert peak_resident_bytes() >= before
    assert peak_resident_bytes() > held.nbytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": (1, 0)}, "bench.checkpoints must be at least 1, got 0"),
        ({"checkpoints": ()}, "bench.checkpoints is empty"),
        ({"rows": 0}, "bench.rows must be at least 1, got 0"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        CompareSuite(**changes)
