import json

import pytest

from circuitkeep.bench.scale import ScaleFindings, ScaleSuite
from circuitkeep.bench.traffic import measure_traffic

COUNTED = {
    "ddp": {
        "plain": {"gradients": 1.0, "weights": 0.0},
        "guarded": {"gradients": 1.0, "weights": 0.0},
    },
    "fsdp": {
        "plain": {"gradients": 1.0, "weights": 1.9},
        "guarded": {"gradients": 1.0, "weights": 2.8},
    },
    "fsdp2": {
        "plain": {"gradients": 1.0, "weights": 1.9},
        "guarded": {"gradients": 1.0, "weights": 3.7},
    },
}


def added(**settings):
    findings = ScaleFindings(ScaleSuite(**settings), COUNTED)
    content = json.loads(json.dumps(findings.content()))
    assert findings.shown()
    return content, {(one["gpus"], one["strategy"]): one for one in content["added"]}


def test_seven_billion_by_hand():
    content, found = added()
    # 32 layers of 4 x 4096^2 + 3 x 4096 x 11008, and 32000 x 4096.
    assert content["model"]["parameters"] == 6_607_077_376
    tokens = 4 * 4096
    operations = 6 * 6_607_077_376 * tokens + 6 * 32 * 4096 * 4096 * tokens
    assert content["plain_step_s"] == pytest.approx(operations / 4e14)
    assert found[8, "ddp"]["gather_bytes"] == 0
    one = found[8, "fsdp2"]
    assert one["gathers"] == 2
    assert one["gather_bytes"] == pytest.approx(2 * 2 * 6_607_077_376 * 7 / 8)
    assert one["gather_s"] == pytest.approx(one["gather_bytes"] / 3e11)
    assert found[64, "fsdp2"]["gather_s"] == pytest.approx(2 * 2 * 6_607_077_376 * 63 / 64 / 4e10)
    assert found[8, "fsdp"]["gathers"] == 1
    # Reading 13.2 GB thrice takes longer than what is to be computed on 32 tokens.
    assert one["probe_s"] == pytest.approx(6 * 6_607_077_376 / 3.35e12)
    assert one["activation_bytes"] == 34 * 32 * 32 * 4096


def test_many_probe_rows_are_bound_by_operations():
    _, found = added(probe_rows=512, probe_length=128)
    assert found[8, "ddp"]["probe_s"] == pytest.approx(6 * 6_607_077_376 * 64 * 128 / 4e14)
    n = found[64, "fsdp2"]["every_n_for_3_percent"]
    share = found[64, "fsdp2"]["overlapped_share"]
    assert share / n <= 0.03 < share / (n - 1)


def test_one_probe_row_per_gpu_is_the_default():
    """Given a number of rows over all of them, each takes its part, and at least one."""
    assert [ScaleSuite().rows_of(gpus) for gpus in (1, 8)] == [1, 1]
    assert [ScaleSuite(probe_rows=16).rows_of(gpus) for gpus in (1, 8, 64)] == [16, 2, 1]


@pytest.mark.parametrize("settings", [{"layers": 0}, {"gpus": (8, 0)}, {"probe_rows": 0}])
def test_mistakes(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=rf"bench\.{name} must be above 0"):
        ScaleSuite(**settings)


def test_the_guard_reduces_no_gradient_again():
    """Gradients are sent once per step, guarded or not; sharded weights are gathered again."""
    found = measure_traffic()
    for strategy in found.values():
        assert strategy["plain"]["gradients"] == strategy["guarded"]["gradients"] == 1
    assert found["ddp"]["guarded"]["weights"] == 0
    for name, times in (("fsdp", 1), ("fsdp2", 2)):
        plain, guarded = (found[name][kind]["weights"] for kind in ("plain", "guarded"))
        # All but the embedding, which stays gathered: 0.87 of the small model.
        assert guarded - plain == pytest.approx(times * 0.8689, abs=1e-3)
        assert plain == pytest.approx(1.8689, abs=1e-3)
