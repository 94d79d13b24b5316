import math

import pytest
import torch

from circuitkeep.checks.propose import (
    propose,
    rounded_down,
    rows_needed,
    unseen_spread,
)

ROWS = 100


def measured(draws, mean, spread, generator):
    """Value and interval of `draws` measurements of `ROWS` normal rows, as the checks make them."""
    rows = mean + spread * torch.randn(draws, ROWS, generator=generator, dtype=torch.double)
    value, half = rows.mean(1), 1.984 * rows.std(1) / math.sqrt(ROWS)
    return value, value - half, value + half


@pytest.mark.parametrize("missed", [0.01, 0.2])
@pytest.mark.parametrize("reseeds", [5, 20])
def test_an_unchanged_model_passes_and_a_loss_fails_as_promised(missed, reseeds):
    generator = torch.Generator().manual_seed(0)
    passed, failed, detected, nearly = [], [], [], []
    for _ in range(400):
        again = measured(reseeds, 1.0, 1.0, generator)
        found = propose(*again, missed=missed, tolerated=0.0)
        _, low, high = measured(40, 1.0, 1.0, generator)
        passed.append((low >= found.threshold).double().mean())
        failed.append((high < found.threshold).double().mean())
        # What the value was thought to be is part of what the loss is counted from.
        off = again[0].mean() - 1
        detected.append((high + off - found.loss < found.threshold).double().mean())
        nearly.append((high + off - 0.7 * found.loss < found.threshold).double().mean())
    passed, failed, detected, nearly = (
        torch.stack(one).mean().item() for one in (passed, failed, detected, nearly)
    )
    assert passed == pytest.approx(1 - missed, abs=0.005 + 0.1 * missed)
    assert failed < 2e-3
    assert detected == pytest.approx(0.9, abs=0.03)
    assert nearly < 0.5


def test_the_chances_of_many_rows_are_those_of_the_normal_distribution():
    """1.96 on either side, 2.33 for a chance of 1%, 1.28 for 90% power."""
    # The normal distribution's tail beyond 6.25 is 2.05e-10.
    normal = torch.distributions.Normal(0.0, 1.0)
    value = 10 + normal.icdf((torch.arange(4000, dtype=torch.double) + 0.5) / 4000)
    found = propose(value, value - 1.96, value + 1.96, tolerated=0.0)
    assert found.threshold == pytest.approx(10 - 1.96 - 2.33, abs=0.02)
    assert found.loss == pytest.approx(2 * 1.96 + 2.33 + 1.28, abs=0.02)
    assert found.false_alarm == pytest.approx(2.05e-10, rel=0.3)


def test_no_loss_that_is_tolerated_fails():
    value = torch.linspace(9.99, 10.01, 20)
    exact = propose(value, value - 0.01, value + 0.01, tolerated=0.0)
    found = propose(value, value - 0.01, value + 0.01, tolerated=0.1)
    assert exact.threshold > 9.9
    assert found.threshold == 9.0
    assert found.loss == pytest.approx(1.0 + 0.02, abs=0.01)
    assert found.false_alarm < exact.false_alarm
    wide = propose(value, value - 2, value + 2, tolerated=0.1)
    assert wide.threshold < 8, "rows that vary ask for more than that"


def test_values_that_never_varied_may_yet():
    ones = torch.ones(20)
    low = torch.full((20,), 0.99)
    rigid = propose(ones, low, ones, tolerated=0.0)
    found = propose(ones, low, ones, tolerated=0.0, least_spread=unseen_spread(384, 20))
    assert rigid.threshold == pytest.approx(0.99, abs=1e-4)
    assert 0.98 < found.threshold < rigid.threshold
    assert found.loss > 2 * 0.01, "the interval will be as wide upwards once it is below 1"
    # 20 times 384 rows, all of them 1: the chance of another is below 1 - .025 ** (1 / 7680).
    assert unseen_spread(384, 20) == pytest.approx(math.sqrt(4.802e-4 / 384), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"missed": 0.0}, "missed is a chance, between 0 and 1, got 0.0"),
        ({"missed": 1.0}, "missed is a chance"),
        ({"power": 1.0}, "power is a chance"),
        ({"tolerated": 1.0}, "tolerated is a share of the value, from 0 to below 1, got 1.0"),
        ({"tolerated": -0.1}, "tolerated is a share"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, message):
    value = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=message):
        propose(value, value, value, **changes)


def test_a_spread_needs_two_measurements():
    with pytest.raises(ValueError, match="reseeds of at least 2, got 1"):
        propose(*torch.ones(3, 1))


def test_rows_that_are_needed_detect_the_loss():
    """With four times the rows, interval and spread are half as wide."""
    value = 1 + 0.05 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    for tolerated, width in ((0.0, 0.1), (0.1, 0.1), (0.1, 0.02)):
        found = propose(value, value - width, value + width, tolerated=tolerated)
        mean = value.mean().item()
        rows = rows_needed(
            100, found.loss / mean, 1 - found.threshold / mean, tolerated=tolerated, loss=0.2
        )
        shrink = math.sqrt(100 / rows)
        more = mean + shrink * (value - mean)
        again = propose(more, more - shrink * width, more + shrink * width, tolerated=tolerated)
        assert again.loss / mean == pytest.approx(0.2, abs=0.002)


def test_what_is_tolerated_cannot_be_detected():
    with pytest.raises(ValueError, match=r"a loss of 0\.1 cannot be detected where 0\.1 is"):
        rows_needed(100, 0.3, 0.1, tolerated=0.1, loss=0.1)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.78129, 0.7812), (3.99999, 3.999), (123456.0, 123400.0), (-0.12341, -0.1235), (0.0, 0.0)],
)
def test_thresholds_are_rounded_down(value, rounded):
    assert rounded_down(value) == rounded
