import pytest
import torch

from circuitkeep.checks.power_report import (
    Detected,
    Level,
    Power,
    check_rows,
    damage_rows,
    detectable,
    to_markdown,
)

KEPT = {"identity": 0.9, "causal": 0.8, "behaviour": 1.0}


@pytest.fixture
def found():
    levels = [
        Level(0.2, 0.201, 0.5, 8, 40, KEPT, {"causal": 39}, {"causal": 1}),
        Level(0.5, 0.5, 1.25, 8, 40, {**KEPT, "causal": 0.5}, {"causal": 40}, {"causal": 0}),
    ]
    return Power(
        circuit="induction",
        model="abc",
        rows=384,
        reseeds=200,
        thresholds={"causal": 3.686},
        false_alarms={"causal": 1},
        inconclusive={"causal": 3},
        levels={"qk": levels, "ov": levels[:1]},
        detected={
            "qk": {"causal": Detected(0.18, 0.15, None)},
            "ov": {"causal": Detected(None, None, None)},
        },
        power=0.9,
    )


def test_the_loss_at_which_enough_runs_fail_is_interpolated():
    failed = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]], dtype=torch.double)
    found = detectable([0.0, 0.1, 0.2], failed, 0.9)
    assert found.loss == pytest.approx(0.18)
    assert found.low == pytest.approx(0.18)
    assert found.high == pytest.approx(0.18)


def test_directions_that_differ_widen_the_interval():
    failed = torch.tensor([[0.0, 1.0, 1.0]] * 5 + [[0.0, 0.0, 1.0]] * 5, dtype=torch.double)
    found = detectable([0.0, 0.1, 0.2], failed, 0.9)
    assert found.loss == pytest.approx(0.18)
    assert 0.09 <= found.low < found.loss < found.high <= 0.2


def test_a_share_that_dips_is_made_to_grow():
    failed = torch.tensor([[0.0, 0.95, 0.85, 1.0]] * 2, dtype=torch.double)
    assert detectable([0.0, 0.1, 0.2, 0.3], failed, 0.9).loss == pytest.approx(0.1)
    assert detectable([0.0, 0.1, 0.2, 0.3], failed, 0.95).loss == pytest.approx(0.25)


def test_what_is_never_detected_is_none():
    failed = torch.tensor([[0.0, 0.3, 0.6]] * 3, dtype=torch.double)
    assert detectable([0.0, 0.1, 0.2], failed, 0.9) == Detected(None, None, None)


def test_losses_that_could_not_be_planted_are_left_out():
    nan = torch.nan
    failed = torch.tensor([[0.0, nan, nan, 1.0], [0.0, nan, 0.4, 1.0]], dtype=torch.double)
    assert detectable([0.0, 0.1, 0.2, 0.3], failed, 0.7).loss == pytest.approx(0.25)


def test_a_check_that_fails_anyway_detects_everything():
    failed = torch.ones(2, 3, dtype=torch.double)
    assert detectable([0.0, 0.1, 0.2], failed, 0.9).loss == 0.0


def test_tables(found):
    titles, (line,) = check_rows(found)
    assert dict(zip(titles, line, strict=True)) == {
        "check": "causal",
        "threshold": "3.686",
        "false alarms of 200": "1",
        "inconclusive": "3",
        "fails at -20%, QK": "39 of 40",
        "detects, QK": "-18% [15%, beyond 50%]",
        "fails at -20%, OV": "39 of 40",
        "detects, OV": "beyond -20%",
    }
    _, lines = damage_rows(found)
    assert lines[1] == ["queries and keys", "1.25", "-50%", "-10%", "+0%", "8"]
    assert [line[0] for line in lines] == ["queries and keys"] * 2 + ["values and outputs"]


def test_markdown(found):
    text = to_markdown(found)
    assert text.startswith("### induction\n\n| check | threshold |")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables[:3]} == {9}
    assert "384 rows in a measurement" in text
