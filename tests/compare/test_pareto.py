from dataclasses import replace

import pytest

from circuitkeep.compare.pareto import front, front_numbers, pareto_chart

NAN = float("nan")


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([(0, 1), (1, 1), (0, 0.5)], [0]),
        ([(0, 0.5), (1, 0.9), (2, 0.8)], [0, 1]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(0, 0.5), (0, 0.6)], [1]),
        ([(NAN, 1), (0, NAN), (3, 0.1)], [2]),
        ([], []),
    ],
)
def test_front(points, wanted):
    assert front([(float(price), float(kept)) for price, kept in points]) == wanted


def test_front_is_what_pairs_say():
    points = [((7.0 * i) % 11, (5.0 * i) % 13) for i in range(20)]
    beaten = {
        i
        for i, (price, kept) in enumerate(points)
        for other in points
        if other[0] <= price and other[1] >= kept and other != (price, kept)
    }
    assert front(points) == sorted(set(range(20)) - beaten)
    assert 1 < len(front(points)) < 20


def test_numbers_count_from_1(report):
    assert front_numbers(report, "induction", "key-value map", "behaviour") == [1, 2, 3]
    assert front_numbers(report, "induction", "repeats", "causal") == [3]


def test_filled_points_are_on_the_front(report):
    line, causal, _, behaviour = pareto_chart(report, "induction", "repeats")["data"]
    assert causal["marker"]["symbol"] == ["square-open", "square-open", "square"]
    assert behaviour["marker"]["symbol"][2] == "diamond"
    assert causal["x"] == pytest.approx([3.871 - 1.204, 3.242 - 1.204, 1.231 - 1.204])
    assert causal["y"] == [0.02, 0.90, 0.98]
    assert line["x"] == causal["x"][2:]
    assert causal["text"] == ["1", "2", "3"]


def test_an_undefined_retention_is_no_point(report):
    result = replace(report.checkpoints[2].circuits["induction"], causal_retention=NAN)
    last = replace(report.checkpoints[2], circuits={"induction": result})
    changed = replace(report, checkpoints=(*report.checkpoints[:2], last))
    _, causal, _, behaviour = pareto_chart(changed, "induction", "repeats")["data"]
    assert (len(causal["x"]), len(behaviour["x"])) == (2, 3)


def test_many_points_and_steps_bear_no_numbers(report, trajectory):
    crowd = replace(report, checkpoints=report.checkpoints * 5)
    for each in (crowd, trajectory):
        assert pareto_chart(each, "induction", "repeats")["data"][1]["mode"] == "markers"
