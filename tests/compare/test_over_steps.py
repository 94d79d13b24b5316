from dataclasses import replace

import pytest

from circuitkeep.compare.over_steps import (
    capability_over_steps,
    retention_over_steps,
    score_frames,
)

NAN = float("nan")


def test_lines_and_bands(trajectory):
    bands, lines = (lambda d: (d[:3], d[3:]))(retention_over_steps(trajectory, "induction")["data"])
    identity, causal, _ = lines
    assert [line["name"] for line in lines] == ["identity", "causal", "behaviour"]
    assert identity["x"] == [100, 200, 300]
    assert identity["y"] == [0.35, 0.99, 0.97]
    assert causal["text"][0] == "step 100<br>unregularized<br>causal 2% [-4, 8]"
    # Out along the upper bounds, back along the lower.
    assert bands[0]["x"] == [100, 200, 300, 300, 200, 100]
    assert bands[0]["y"] == pytest.approx([0.38, 1.02, 1.00, 0.94, 0.96, 0.32])


def test_an_undefined_retention_is_a_gap(trajectory):
    first, *others = trajectory.checkpoints
    result = replace(
        first.circuits["induction"], causal_retention=NAN, identity_interval=(NAN, 1.0)
    )
    first = replace(first, circuits={"induction": result})
    changed = replace(trajectory, checkpoints=(first, *others))
    identity_band, _, _, _, causal, _ = retention_over_steps(changed, "induction")["data"]
    assert causal["x"] == [200, 300]
    assert identity_band["y"][-1] == 0.35


def test_a_line_per_dataset(trajectory):
    task, repeats = capability_over_steps(trajectory)["data"]
    assert (task["name"], repeats["name"]) == ("key-value map", "repeats")
    assert repeats["y"] == pytest.approx([3.871 - 1.204, 3.242 - 1.204, 1.231 - 1.204])
    assert task["line"]["dash"] != repeats["line"]["dash"]


def test_frames_are_the_cells_of_each_model(trajectory):
    result = trajectory.checkpoints[0].circuits["induction"]
    layers = result.scores["induction"]
    broken = {**result.scores, "induction": ((NAN, *layers[0][1:]), *layers[1:])}
    first = replace(
        trajectory.checkpoints[0], circuits={"induction": replace(result, scores=broken)}
    )
    changed = replace(trajectory, checkpoints=(first, *trajectory.checkpoints[1:]))
    chart = score_frames(changed, "induction", "induction")
    base, step_100, *_ = (frame["data"][0]["z"] for frame in chart["frames"])
    assert base[1] == [0.95, 0.05, 0.05, 0.95]
    assert step_100[1] == [pytest.approx(0.95 * 0.35, abs=5e-4), 0.05, 0.05, pytest.approx(0.332)]
    assert step_100[0][0] is None
    assert chart["data"][0]["customdata"] == base
