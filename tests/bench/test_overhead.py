import json

import pytest
import torch

from circuitkeep.bench.memory import PeakMemory, alive_bytes
from circuitkeep.bench.overhead import OverheadSuite
from circuitkeep.bench.overhead_report import PLAIN, Cost, OverheadFindings

TINY = {
    "rows": 2,
    "length": 24,
    "layers": 2,
    "heads": 2,
    "d_model": 16,
    "vocab": 100,
    "heads_guarded": ["L0H1", "L1H0"],
}
SOME = ["guard", "guard, patterns 8x64", "guard, both 8x64", "KL to a reference", "L2-SP"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tensorboard.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used:UserWarning"),
]


@pytest.fixture(scope="module")
def findings():
    return OverheadSuite(**TINY, contenders=SOME).run(lambda name, done, total: None)


cannot_afford_it = pytest.mark.filterwarnings("ignore:.*cannot be kept within budget:UserWarning")


@cannot_afford_it
@pytest.mark.slow
def test_all_contenders_compute_the_same_loss():
    suite = OverheadSuite(**TINY)
    assert tuple(suite.run(lambda name, done, total: None).costs) == suite.names


def test_every_contender_is_measured_beside_the_plain_step(findings):
    assert list(findings.costs) == [PLAIN, *SOME]
    for name, cost in findings.costs.items():
        assert len(cost.seconds) == 5
        assert min(cost.seconds) > 0, name
        assert min(cost.cpu_seconds) > 0, name
        assert cost.peak_bytes > 0, name
    assert findings.ratio(PLAIN).median == 1
    assert findings.floor(PLAIN) == 0


def test_operations_are_those_of_the_extra_work(findings):
    # A frozen copy's forward pass is a third of forward and backward (attention a little less).
    assert findings.floor("KL to a reference") == pytest.approx(1 / 3, abs=0.02)
    assert findings.floor("L2-SP") == 0
    both, patterns = findings.floor("guard, both 8x64"), findings.floor("guard, patterns 8x64")
    assert 0 < patterns < both
    assert findings.memory("L2-SP") > 1


def test_the_report_is_plain_json_and_a_table(findings):
    content = json.loads(json.dumps(findings.content()))
    names = [contender["name"] for contender in content["contenders"]]
    assert names == list(findings.costs)[1:]
    claims = {c["name"]: c["claim"] for c in content["contenders"] if c["claim"] is not None}
    assert claims == {"guard": 1.05, "guard, patterns 8x64": 1.10, "guard, both 8x64": 1.30}
    assert content["plain"]["flops"] > 0
    assert findings.shown()


@cannot_afford_it
def test_a_guard_with_a_budget_is_charged_by_what_it_chose():
    suite = OverheadSuite(**TINY, contenders=["guard, budget 3%"])
    cost = suite.run(lambda *told: None).costs["guard, budget 3%"]
    # On a model this small a penalty costs as much as a step, so it cannot be due in each.
    assert cost.every_n > 10
    assert f"which chose 1 rows every {cost.every_n} steps" in cost.about


def test_the_cost_of_a_due_step_is_shared_out():
    costs = {
        PLAIN: Cost("", [1.0, 2.0], [1.0, 1.0], 100, 1),
        "guard": Cost("", [1.5, 2.5], [1.2, 1.1], 110, 1, 1.1, 5),
    }
    findings = OverheadFindings(costs, {}, 2, {})
    assert findings.ratio("guard") == pytest.approx((1.075, 1.05, 1.1))
    assert findings.cpu_ratio("guard") == pytest.approx((1.03, 1.02, 1.04))
    assert findings.floor("guard") == pytest.approx(0.02)


def test_some_contenders_only():
    suite = OverheadSuite(**TINY, contenders=["L2-SP"])
    assert list(suite.run(lambda *told: None).costs) == [PLAIN, "L2-SP"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contenders": ["L2"]}, "there is no contender 'L2'; known: plain, guard"),
        ({"repeats": 2}, "repeats=2: a median and its range need at least 5"),
        ({"rows": 0}, "bench.rows must be at least 1, got 0"),
        ({"heads_guarded": ["L9H0"]}, "head L9H0 is outside the model"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        OverheadSuite(**{**TINY, **settings})


def test_peak_memory_by_hand():
    kept = torch.zeros(1000)
    before = alive_bytes()
    with PeakMemory(torch.device("cpu")) as memory:
        one = torch.ones(5000)
        two = one + 1
        del one
        three = torch.ones(2000)
        del two, three
    # 5000 and 5000 at once; 5000 and 2000 later.
    assert memory.bytes - before == pytest.approx(40_000, abs=100)  # and what ones needs
    layer = torch.nn.Linear(10, 10)
    with PeakMemory(torch.device("cpu"), without=layer) as less:
        pass
    assert less.bytes == alive_bytes() - 440
    assert kept.shape == (1000,)
