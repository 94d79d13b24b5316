from dataclasses import replace

from circuitkeep.checks.baseline import Baseline, Pinned
from circuitkeep.checks.changes import changes

ONE = Pinned(2.0, 1.9, 2.1, 0.05, 0.0, 1.8, 1e-6, 0.15)
OLD = Baseline("c", "abc", 128, 3, 20, 0.01, 0.1, {"causal": ONE, "behaviour": ONE})


def changed(**parts):
    return changes(OLD, replace(OLD, checks={**OLD.checks, "causal": replace(ONE, **parts)}))


def test_the_same_is_told_as_such():
    assert changes(OLD, OLD) == ["nothing has changed"]


def test_a_value_beyond_what_rows_explain_is_told_apart():
    # 3 standard deviations of a difference are 3 * sqrt(2) * 0.05 = 0.212.
    (line,) = changed(value=1.8)
    assert line == "causal: 2 -> 1.8, no more than other rows explain"
    (line,) = changed(value=1.7)
    assert line == (
        "causal: 2 -> 1.7, more than other rows explain: the model does this less than before"
    )
    (line,) = changed(value=2.3)
    assert line.endswith("the model does this more than before")


def test_a_lowered_threshold_is_asked_about():
    (line,) = changed(threshold=0.9)
    assert line == (
        "causal: threshold 1.8 -> 0.9, lowered: losses of up to 50% that failed before pass from "
        "now on; is that what you want?"
    )
    (line,) = changed(threshold=1.9)
    assert line == "causal: threshold 1.8 -> 1.9, raised"


def test_checks_that_come_and_go():
    new = replace(OLD, checks={"causal": ONE, "faithfulness": ONE})
    assert changes(OLD, new) == [
        "behaviour: no longer pinned: nothing is asked of it any more",
        "faithfulness: pinned from now on, at 1.8",
    ]


def test_other_weights_and_other_rows():
    assert changes(OLD, replace(OLD, model="xyz", rows=256)) == [
        "the model: these are other weights than those that were pinned",
        "rows: 128 -> 256: intervals and thresholds move with it",
    ]
