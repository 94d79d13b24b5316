"""Groups of replicates, of rows that are known beforehand."""

from dataclasses import replace

import pytest
import torch

from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare.groups import check_groups, replicate_groups
from circuitkeep.compare.paired import CircuitRows

BASE = 1 + torch.arange(40) / 40
CIRCUIT = Circuit(
    "ind", (Role("induction", (Head(1, 0),)),), {"_target_": "x"}, "accuracy", "a test"
)


def rows(share, seed):
    noise = 0.02 * torch.randn(40, generator=torch.Generator().manual_seed(seed))
    found = (share + 0.01 * seed) * BASE + noise - noise.mean()
    return CircuitRows({"induction": found}, found, found)


@pytest.fixture
def found(report):
    kept = {"plain": 0.3, "guarded": 0.8}
    groups = {name: [f"{name}-{seed}" for seed in range(3)] for name in kept}
    measured = {f"{n}-{seed}": {"ind": rows(s, seed)} for n, s in kept.items() for seed in range(3)}
    losses = {
        name: replace(
            report.base, name=name, capability={"task": {"loss_nats": 2.0 + 0.1 * ("g" in name)}}
        )
        for name in measured
    }
    base = CircuitRows({"induction": BASE}, BASE, BASE)
    return replicate_groups(groups, [CIRCUIT], {"ind": base, "other": base}, measured, losses)


def test_shares_and_differences_over_seeds(found):
    plain, guarded = found
    assert (plain.against, guarded.against) == ("", "plain")
    for group, share in ((plain, 0.31), (guarded, 0.81)):
        for kind in ("identity", "causal", "behaviour"):
            one = group.circuits["ind"][kind]
            assert one.share.mean == pytest.approx(share, abs=1e-6)
            assert (one.share.seeds, one.share.prompts) == (3, 40)
        assert list(group.circuits) == ["ind"]
    one = guarded.circuits["ind"]["behaviour"]
    assert one.difference.mean == pytest.approx(0.5, abs=1e-6)
    assert one.p_holm == one.difference.p < 0.01  # one test in the family
    assert plain.circuits["ind"]["behaviour"].difference is None
    assert guarded.losses["task"].difference.mean == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"x": ["a", "bb"]}, "replicates.x: there is no checkpoint 'bb'; did you mean 'b'"),
        ({"x": ["a"], "y": ["a"]}, "'a' stands in x and in y"),
        ({"x": ["a", "b"], "y": ["c"]}, "as many checkpoints in each group.*x 2, y 1"),
        ({"x": []}, "as many checkpoints in each group"),
        ({"a": ["b"]}, "'a' is a checkpoint; name the group otherwise"),
    ],
)
def test_groups_that_cannot_be_paired_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        check_groups(groups, ["a", "b", "c"])
