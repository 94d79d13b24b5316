import math

import pytest
import torch

from circuitkeep.checks import Check, Evidence, Plan, Verdict, judge
from circuitkeep.checks.judge import weakest
from circuitkeep.checks.outcome import decide, mean_interval_t
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.evals.circuit import CircuitMeasurement
from circuitkeep.probes import RepeatedTokens

NAN = float("nan")
CIRCUIT = Circuit(
    "c",
    (Role("previous-token", (Head(0, 1),)), Role("induction", (Head(1, 0), Head(1, 2)))),
    {"_target_": "circuitkeep.probes.RepeatedTokens"},
    "accuracy",
    "made up",
)
PLAN = Plan(CIRCUIT, RepeatedTokens(), 4, (7, 8), ())


def evidence(scores=None, effect=(1.0,) * 8, behaviour=(1.0,) * 8, family=(0,) * 8, **more):
    """Two seeds of 4 rows; `scores` are those of L1H2, those of the other named heads are .9."""
    of_role = {}
    for role in CIRCUIT.roles:
        values = torch.full((8, 2, 4), 0.1)
        for head in role.heads:
            values[:, head.layer, head.index] = 0.9
        of_role[role.name] = values
    if scores is not None:
        of_role["induction"][:, 1, 2] = torch.tensor(scores)
    measured = CircuitMeasurement(of_role, torch.tensor(effect), torch.tensor(behaviour))
    seed = torch.arange(2).repeat_interleave(4)
    return Evidence(measured, seed, torch.tensor(family), **more)


def check(kind, threshold, part="", at_least=None):
    return Check(kind, part, threshold, "tests", at_least)


def test_the_interval_by_hand():
    # Mean 2, standard deviation 1, n 3: half-width 4.302653 / sqrt(3).
    low, high = mean_interval_t(torch.tensor([1.0, 2.0, 3.0, NAN]))
    assert low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)


def test_all_right_is_not_certainty():
    low, high = mean_interval_t(torch.ones(100), bounded=True)
    # So many right answers in a row have a chance of 2.5% at this share.
    assert low**100 == pytest.approx(0.025)
    assert high == 1
    assert mean_interval_t(torch.zeros(100), bounded=True)[1] == pytest.approx(1 - low)
    assert mean_interval_t(torch.ones(100)) == (1, 1)


def test_bounded_intervals_stay_within_their_bounds():
    low, high = mean_interval_t(torch.tensor([1.0, 1.0, 0.9]), bounded=True)
    assert high == 1
    assert low < 0.97
    assert all(math.isnan(x) for x in mean_interval_t(torch.ones(1)))


def test_intervals_cover_the_mean():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2000, 12, generator=generator)
    bounds = [mean_interval_t(row) for row in drawn]
    covered = sum(low <= 0 <= high for low, high in bounds) / 2000
    assert 0.935 < covered < 0.965


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.5, 0.6, "passed"), (0.4, 0.6, "inconclusive"), (0.4, 0.49, "failed"), (NAN, NAN, "failed")],
)
def test_verdicts(low, high, verdict):
    assert decide(low, high, 0.5) == Verdict(verdict)


def test_a_score_is_that_of_the_weakest_head():
    scores = [0.5, 0.6, 0.7, 0.6, 0.5, 0.6, 0.7, 0.6]
    now = evidence(scores)
    assert weakest(PLAN, "induction", now) == Head(1, 2)
    outcome = judge(PLAN, check("score", 0.4, "induction"), now)
    assert outcome.value == pytest.approx(0.6)
    assert outcome.verdict == Verdict.PASSED
    assert outcome.detail == "the lowest is L1H2"
    assert (outcome.check, outcome.rows) == ("score[induction]", 8)
    assert judge(PLAN, check("score", 0.8, "induction"), now).verdict == Verdict.FAILED


def test_how_many_more_rows_would_decide():
    scores = [0.5, 0.6, 0.7, 0.6, 0.5, 0.6, 0.7, 0.6]
    now = evidence(scores)
    outcome = judge(PLAN, check("score", 0.59, "induction"), now)
    assert outcome.verdict == Verdict.INCONCLUSIVE
    half = outcome.value - outcome.low
    assert outcome.more_rows == math.ceil(8 * (half / 0.01) ** 2) - 8
    assert judge(PLAN, check("score", 0.4, "induction"), now).more_rows is None
    at_it = judge(PLAN, check("score", outcome.value, "induction"), now)
    assert (at_it.verdict, at_it.more_rows) == (Verdict.INCONCLUSIVE, None)


def test_effect_and_behaviour():
    now = evidence(effect=[1.0, 1.2, 0.8, 1.0] * 2, behaviour=[0.5, 0.7, 0.6, 0.6] * 2)
    outcome = judge(PLAN, check("causal", 0.5), now)
    assert (outcome.verdict, outcome.value) == (Verdict.PASSED, pytest.approx(1.0))
    assert "nats" in outcome.unit
    outcome = judge(PLAN, check("behaviour", 0.9), now)
    assert (outcome.verdict, outcome.value) == (Verdict.FAILED, pytest.approx(0.6))


def test_accuracy_of_few_prompts_is_not_sure():
    outcome = judge(PLAN, check("behaviour", 0.95), evidence())
    assert (outcome.value, outcome.verdict) == (1, Verdict.INCONCLUSIVE)
    assert outcome.more_rows is not None


def test_faithfulness_is_a_share():
    kept, whole = torch.tensor([0.5, 0.7] * 4), torch.tensor([1.0, 1.0] * 4)
    outcome = judge(PLAN, check("faithfulness", 0.4), evidence(kept=kept, whole=whole))
    assert (outcome.value, outcome.verdict) == (pytest.approx(0.6), Verdict.PASSED)


def test_retention():
    now = evidence([0.45] * 8, effect=[0.5] * 8, behaviour=[0.25] * 8)
    base = evidence(behaviour=[0.5] * 8)
    # previous-token 1, induction (.9 + .45) / 2 / .9 = .75
    for part, value in (("identity", 0.875), ("causal", 0.5), ("behaviour", 0.5)):
        outcome = judge(PLAN, check("retention", 0.95, part), now, base)
        assert outcome.value == pytest.approx(value)
        assert outcome.verdict == Verdict.FAILED
        assert judge(PLAN, check("retention", 0.4, part), now, base).verdict == Verdict.PASSED


def test_a_share_of_nothing_fails_and_says_so():
    base = evidence(effect=[-1.0] * 8)
    outcome = judge(PLAN, check("retention", 0.5, "causal"), evidence(), base)
    assert outcome.verdict == Verdict.FAILED
    assert outcome.detail == "what it is compared with is not positive"


def test_no_base():
    with pytest.raises(ValueError, match=r"retention\[causal\] compares with a base model"):
        judge(PLAN, check("retention", 0.5, "causal"), evidence())


def test_replication_over_seeds_and_families():
    scores = [0.8, 0.8, 0.2, 0.2, 0.8, 0.8, 0.8, 0.8]
    now = evidence(scores, family=[0, 0, 1, 1] * 2)
    outcome = judge(PLAN, check("replicates", 0.5, "induction"), now)
    # Seed 7 has .5 and family 1 has .5, both with wide intervals; seed 8 and family 0 pass.
    assert (outcome.low, outcome.high, outcome.threshold) == (2, 4, 4)
    assert outcome.verdict == Verdict.INCONCLUSIVE
    assert "of 4 seeds and families" in outcome.unit
    assert outcome.detail.startswith("the lowest is 0.50, ")
    assert judge(PLAN, check("replicates", 0.5, "induction", 2), now).verdict == Verdict.PASSED
    outcome = judge(PLAN, check("replicates", 0.85, "induction", 1), evidence([0.8] * 8))
    assert outcome.verdict == Verdict.FAILED
    few = judge(PLAN, check("replicates", 0.5, "induction", 9), evidence([0.8] * 8))
    assert (few.threshold, few.verdict) == (2, Verdict.PASSED), "no more than there are"


def test_migration():
    base = evidence()
    assert judge(PLAN, check("no_migration", 0.0), base, base).verdict == Verdict.PASSED
    now = evidence([0.1] * 8)
    outcome = judge(PLAN, check("no_migration", 0.0), now, base)
    assert (outcome.verdict, outcome.value) == (Verdict.FAILED, 1)
    assert outcome.detail == "induction: L1H2 lost it"
    half = evidence([0.1] * 4 + [0.9] * 4)
    outcome = judge(PLAN, check("no_migration", 0.0), half, base)
    assert (outcome.verdict, outcome.low, outcome.high) == (Verdict.INCONCLUSIVE, 0, 1)


def test_lost_rows_are_left_out():
    now = evidence([NAN, 0.6, 0.7, 0.6, 0.5, 0.6, 0.7, 0.6])
    assert math.isfinite(judge(PLAN, check("score", 0.4, "induction"), now).low)
