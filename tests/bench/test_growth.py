import json

import pytest

from circuitkeep.bench.growth import AXES, GrowthSuite
from circuitkeep.bench.growth_plot import draw

TINY = {
    "guarded": (2, 1),
    "lengths": (24, 48),
    "probe_lengths": (24, 64),
    "sizes": (2, 4),
    "heads": 2,
    "d_model": 16,
    "vocab": 100,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*tensorboard.*:UserWarning")


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def findings(told):
    return GrowthSuite(**TINY).run(lambda *one: told.append(one))


def test_one_thing_is_varied_at_a_time(findings):
    content = json.loads(json.dumps(findings.content()))
    points = {(one["axis"], one["value"]): one for one in content["points"]}
    assert list(points) == [("base", 2), *((axis, TINY_VALUES[axis]) for axis in AXES)]
    base = points["base", 2]
    # Operations are exact, so what grows and what does not can be said of them.
    assert points["tokens per probe row", 64]["plain_flops"] == base["plain_flops"]
    assert points["tokens per probe row", 64]["added_flops"] > 2 * base["added_flops"]
    assert points["tokens per training row", 48]["added_flops"] == base["added_flops"]
    assert points["tokens per training row", 48]["floor"] < base["floor"]
    assert points["guarded heads", 1]["added_flops"] < base["added_flops"]
    assert points["layers", 4]["plain_flops"] > 2 * base["plain_flops"]
    assert content["base"]["heads"] == 2


TINY_VALUES = dict(zip(AXES, (1, 48, 64, 4), strict=True))


def test_a_panel_per_axis(findings, tmp_path):
    content = findings.content()
    base = dict(zip(AXES, content["bases"], strict=True))
    assert base == dict(zip(AXES, (2, 24, 24, 2), strict=True))
    draw(content["points"], base, tmp_path / "growth.svg")
    drawn = (tmp_path / "growth.svg").read_text(encoding="utf-8")
    assert drawn.count('id="axes_') == len(AXES)


def test_progress_goes_up_to_the_end(findings, told):
    done = [one[1] for one in told]
    assert done == sorted(done)
    assert {one[2] for one in told} == {60}


def test_a_row_per_point(findings):
    table = findings.shown()[0]
    assert table.row_count == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guarded": (2, 9)}, "bench.guarded=9: a model of 2 layers has 4 heads"),
        ({"sizes": ()}, "bench.sizes is empty"),
        ({"lengths": (24, 0)}, "bench.length must be at least 1, got 0"),
        ({"repeats": 1}, "repeats=1: a median and its range need at least 5"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        GrowthSuite(**{**TINY, **settings})
