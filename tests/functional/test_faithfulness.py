import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.faithfulness import curve_areas, faithfulness


def test_faithfulness_by_hand():
    found = faithfulness(torch.tensor([1.0, 3.0, 5.0, 6.0]), torch.tensor(1.0), torch.tensor(5.0))
    assert_close(found, torch.tensor([0.0, 0.5, 1.0, 1.25]))
    with pytest.raises(ValueError, match="the metric is 2 with everything ablated as without"):
        faithfulness(torch.tensor([1.0]), torch.tensor(2.0), torch.tensor(2.0))


def test_faithfulness_has_a_gradient():
    values = [torch.rand(3, dtype=torch.float64), *torch.tensor([0.1, 2.0], dtype=torch.float64)]
    assert torch.autograd.gradcheck(faithfulness, [v.requires_grad_() for v in values])


def test_areas_by_hand():
    cpr, cmd = curve_areas((0.0, 0.5, 1.0), torch.tensor([0.0, 1.5, 1.0]))
    assert cpr == pytest.approx(0.5 * 0.75 + 0.5 * 1.25)
    assert cmd == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)
    assert curve_areas((0.1, 1.0), torch.ones(2)) == pytest.approx((0.9, 0))


def test_areas_by_a_naive_loop():
    sizes = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    values = torch.randn(10, generator=torch.Generator().manual_seed(0))
    under = distance = 0.0
    for i in range(9):
        width = sizes[i + 1] - sizes[i]
        under += width * (values[i] + values[i + 1]).item() / 2
        distance += width * (abs(1 - values[i]) + abs(1 - values[i + 1])).item() / 2
    assert curve_areas(sizes, values) == pytest.approx((under, distance))


@pytest.mark.parametrize(
    ("sizes", "values"), [((0.1,), [1.0]), ((0.5, 0.1), [1.0, 1.0]), ((0.1, 0.5), [1.0])]
)
def test_no_curve(sizes, values):
    with pytest.raises(ValueError, match="at least two ascending sizes"):
        curve_areas(sizes, torch.tensor(values))
