"""Whatever stands in a circuit file, its reader is told in one sentence where it is wrong."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitkeep.checks import Plan, load_plan

pytest_plugins = "pytester"

RIGHT = """\
name: induction
source: wired by hand
roles:
  previous-token: [L0H1]
  induction:
  - L1H2
probe:
  _target_: circuitkeep.probes.RepeatedTokens
  length: 14
  segment: [4, 5]
behaviour: accuracy
thresholds:
  induction: 0.5
tests:
  rows: 12
  seeds: [1, 2]
  score: {previous-token: 0.9}
  causal: 0.5
  behaviour: 0.8
  replicates: {induction: 2}
  retention:
    causal: 0.8
"""

TEMPLATES = """\
name: copying
source: wired by hand
roles: {mover: [L1H2]}
probe:
  _target_: circuitkeep.probes.Templates
  templates: ["{A} met {B} and {A}", "{B} saw {A} and {A}"]
  fillers: {A: [Ann, Ben, Cy, Dan, Eve, Flo, Gus, Hal, Ida, Joe, Kim], B: A}
  answer: A
  targets: {mover: {from: answer, to: A}}
behaviour: accuracy
"""

MANIFOLDS = (
    RIGHT
    + """\
  geometry: {place: {shape: 0.9}}
manifolds:
  place:
    variable: position
    layer: 1
    values: [1, 12]
    dimensions: 3
"""
)

# What is wrong -> (the right text, what stands there instead, the line, words of the message).
MISTAKES = {
    "no YAML": ("roles:\n", "roles: [\n", None, "not YAML"),
    "a tab": ("  rows: 12", "\trows: 12", 15, r"cannot start any token"),
    "an open quote": ("name: induction", 'name: "induction', None, "not YAML"),
    "a key twice": ("behaviour: accuracy", "name: again\nbehaviour: accuracy", 11, "stands twice"),
    "a role twice": ("  induction:\n  - L1H2", "  previous-token: [L1H2]", 5, "stands twice"),
    "unknown key": ("source:", "sauce:", 2, "'sauce'.*did you mean 'source'"),
    "missing key": ("source: wired by hand\n", "", 1, "'source' is missing"),
    "name is a number": ("name: induction", "name: 3", 1, "'name' must be a non-empty text"),
    "name is a date": ("name: induction", "name: 2020-02-03", 1, "'name' must be"),
    "name is no date": ("name: induction", "name: 2020-02-31", 1, "not YAML.*day"),
    "name is empty": ("name: induction", "name: ''", 1, "'name' must be a non-empty text"),
    "name is a path": ("name: induction", "name: ../x", 1, "letters, digits"),
    "source is a list": ("wired by hand", "[wired]", 2, "'source' must be"),
    "roles is a list": ("roles:\n", "roles: [L0H1]\nrules:\n", 4, "'rules'.*'roles'"),
    "no roles": (RIGHT[RIGHT.index("roles") : RIGHT.index("probe")], "roles: {}\n", 3, "'roles'"),
    "a role without heads": ("[L0H1]", "[]", 4, "'previous-token' must list its heads"),
    "a role of one head": ("[L0H1]", "L0H1", 4, "'previous-token' must list its heads"),
    "no head": ("- L1H2", "- L1X2", 6, "'L1X2' is not a head"),
    "a head twice": ("[L0H1]", "[L0H1, 0.1]", 4, "named twice"),
    "a role that is not labelled": ("  induction:\n", "  inductoin:\n", None, "did you mean"),
    "probe is a text": ("probe:\n", "probe: x\nprobes:\n", 8, "'probes'.*'probe'"),
    "no target": ("  _target_: circuitkeep.probes.RepeatedTokens\n", "", 7, "_target_"),
    "unknown probe": ("RepeatedTokens", "RepeatTokens", 8, "did you mean 'RepeatedTokens'"),
    "a target of no module": ("circuitkeep.probes.R", "circuitkeep.prob.R", 8, "no module"),
    "a target elsewhere": ("circuitkeep.probes.R", "os.R", 8, "not.* a Probe class|not part of"),
    "a target that is a function": ("circuitkeep.probes.RepeatedTokens", "os.system", 8, "Probe"),
    "a target that is a number": ("circuitkeep.probes.RepeatedTokens", "3", 8, "_target_"),
    "unknown argument": ("  length: 14", "  lenght: 14", 9, "did you mean 'length'"),
    "argument is a text": ("length: 14", "length: long", 9, "length must be a whole number"),
    "argument is a truth": ("length: 14", "length: yes", 9, "length must be a whole number"),
    "argument is a number": ("[4, 5]", "4", 10, "segment must be a list"),
    "argument of one": ("[4, 5]", "[4]", 10, "segment must be"),
    "argument out of order": ("[4, 5]", "[5, 4]", 10, "segment must be"),
    "argument below range": ("[4, 5]", "[0, 5]", 10, "segment must be"),
    "unknown behaviour": ("accuracy", "acuracy", 11, "did you mean 'accuracy'"),
    "not the probe's behaviour": ("accuracy", "logit_difference", 11, "cannot measure"),
    "behaviour is a list": ("accuracy", "[accuracy]", 11, "'behaviour' must be"),
    "threshold of no role": ("  induction: 0.5", "  induct: 0.5", 13, "none of its roles"),
    "threshold above 1": ("induction: 0.5", "induction: 1.5", 13, "got 1.5"),
    "threshold of 0": ("induction: 0.5", "induction: 0", 13, "got 0"),
    "threshold is true": ("induction: 0.5", "induction: true", 13, "must map roles to numbers"),
    "threshold is nan": ("induction: 0.5", "induction: .nan", 13, "got nan"),
    "threshold is a text": ("induction: 0.5", "induction: half", 13, "must map roles to numbers"),
    "thresholds is a number": ("  induction: 0.5\n", "", None, "'thresholds' must map"),
    "tests is a list": (RIGHT[RIGHT.index("  rows") :], "  - causal\n", 14, "'tests' must map"),
    "unknown test": ("  causal: 0.5", "  casual: 0.5", 18, "did you mean 'causal'"),
    "one row": ("rows: 12", "rows: 1", 15, "rows must be at least 2"),
    "half rows": ("rows: 12", "rows: 12.5", 15, "rows must be at least 2"),
    "rows is true": ("rows: 12", "rows: true", 15, "rows must be at least 2"),
    "seeds is a number": ("seeds: [1, 2]", "seeds: 1", 16, "must list different whole numbers"),
    "a seed twice": ("seeds: [1, 2]", "seeds: [1, 1]", 16, "must list different"),
    "no seeds": ("seeds: [1, 2]", "seeds: []", 16, "must list different"),
    "a seed below 0": ("seeds: [1, 2]", "seeds: [-1]", 16, "must list different"),
    "a seed too large": ("seeds: [1, 2]", "seeds: [9223372036854775808]", 16, "must list"),
    "score is a number": ("{previous-token: 0.9}", "0.9", 17, "'score' must map"),
    "score of no role": ("{previous-token: 0.9}", "{copying: 0.9}", 17, "known: previous-token"),
    "score out of range": ("{previous-token: 0.9}", "{previous-token: 9}", 17, "between 0 and 1"),
    "causal is a text": ("causal: 0.5", "causal: high", 18, "tests.causal must be a number"),
    "causal is infinite": ("causal: 0.5", "causal: .inf", 18, "tests.causal must be a number"),
    "causal is a mapping": ("causal: 0.5", "causal: {a: 1}", 18, "tests.causal must be a number"),
    "replicates of no role": ("{induction: 2}", "{inductoin: 2}", 20, "did you mean 'induction'"),
    "replicates in half": ("{induction: 2}", "{induction: 0.5}", 20, "number from 1, or all"),
    "replicates in none": ("{induction: 2}", "{induction: 0}", 20, "number from 1, or all"),
    "replicates is a number": ("{induction: 2}", "2", 20, "'replicates' must map"),
    "retention of nothing": ("    causal: 0.8", "    casual: 0.8", 22, "did you mean 'causal'"),
    "retention is true": ("    causal: 0.8", "    causal: true", 22, "must be a number"),
    "no_migration is a number": ("  causal: 0.5", "  no_migration: 3", 18, "must be true, or null"),
    "an object": ("wired by hand", "!!python/object:os.system {}", 2, "not YAML.*python/object"),
    "an alias of nothing": ("wired by hand", "*hand", 2, "undefined alias"),
    "an alias of itself": ("[4, 5]", "&a [4, *a]", 10, "an alias stands within"),
    "a merge": ("  rows: 12", "  <<: {rows: 12}", 15, "not YAML.*merge"),
    "a key that is a list": ("  rows: 12", "  ? [rows]\n  : 12", 15, "unhashable"),
    "a truth of another kind": ("wired by hand", "!!bool maybe", 2, "bool cannot be read"),
    "two documents": ("name: induction", "name: induction\n---\nname: b", 2, "not YAML.*document"),
}
OF_TEMPLATES = {
    "fillers is a list": (
        "{A: [Ann, Ben, Cy, Dan, Eve, Flo, Gus, Hal, Ida, Joe, Kim], B: A}",
        "[A]",
        7,
        "fillers",
    ),
    "a filler is no text": ("Ann, Ben", "Ann, no", 7, "not text"),
    "a place that there is not": ("to: A}", "to: C}", 9, "no placeholder 'C'"),
    "a target is a number": ("{from: answer, to: A}", "3", 9, "'mover': targets must be"),
    "a target backs up a list": ("to: A}", "to: A, backs_up: [x]}", 9, "backs_up must be a text"),
    "an answer without fillers": ("answer: A", "answer: Z", 8, "'Z' has no fillers"),
}
OF_MANIFOLDS = {
    "geometry is a number": ("{place: {shape: 0.9}}", "0.9", 23, "'geometry' must map place"),
    "geometry of nothing": ("{place: {", "{plac: {", 23, "did you mean 'place'"),
    "geometry of no kind": ("{shape: 0.9}", "{shap: 0.9}", 23, "did you mean 'shape'"),
    "geometry is a text": ("{shape: 0.9}", "{shape: much}", 23, "must be a share"),
    "geometry is true": ("{shape: 0.9}", "true", 23, "must be a share"),
    "geometry above 1": ("{shape: 0.9}", "{place: 1.5}", 23, "must be a share"),
    "geometry is nan": ("{shape: 0.9}", ".nan", 23, "must be a share"),
    "manifolds is a list": ("manifolds:\n  place:", "manifolds:\n- place:", 24, "'manifolds' must"),
    "a manifold of blanks": ("  place:\n", "  a place:\n", 25, "letters, digits"),
    "a manifold is a number": (
        "  place:\n    variable: position\n    layer: 1\n    values: [1, 12]\n    dimensions: 3\n",
        "  place: 3\n",
        25,
        "must map",
    ),
    "a manifold twice": ("  place:\n", "  place: {}\n  place:\n", 26, "stands twice"),
    "unknown key of a manifold": ("    layer: 1", "    lager: 1", 27, "did you mean 'layer'"),
    "no variable": ("    variable: position\n", "", 25, "'variable' is missing"),
    "layer is a text": ("layer: 1", "layer: last", 27, "layer must be a whole number"),
    "layer below -1": ("layer: 1", "layer: -2", 27, "layer must be a whole number"),
    "values is a number": ("[1, 12]", "12", 28, "the first and the last"),
    "values out of order": ("[1, 12]", "[12, 1]", 28, "the first and the last"),
    "too many dimensions": ("dimensions: 3", "dimensions: 12", 29, "11 dimensions at most"),
    "no dimensions": ("dimensions: 3", "dimensions: 0", 29, "dimensions must be a whole number"),
}


def broken(right, mistake):
    text, instead, line, words = mistake
    assert right.count(text) >= 1, text
    wrong = right.replace(text, instead, 1)
    if text in ("behaviour: 0.8", "accuracy", "[accuracy]"):
        wrong = right.replace(f"behaviour: {text}", f"behaviour: {instead}", 1)
    return wrong, line, words


FILES = {
    **{name: broken(RIGHT, mistake) for name, mistake in MISTAKES.items()},
    **{name: broken(TEMPLATES, mistake) for name, mistake in OF_TEMPLATES.items()},
    **{name: broken(MANIFOLDS, mistake) for name, mistake in OF_MANIFOLDS.items()},
    "empty": ("", 1, "a circuit file holds the keys"),
    "a list": ("- a\n- b\n", 1, "a circuit file holds the keys"),
    "a text": ("circuit", 1, "a circuit file holds the keys"),
    "binary": (b"\x00\xff\xfe\x89PNG", None, "not YAML"),
    "a control character": ("name: a\x07b", None, "not YAML"),
    "deep": ("[" * 2000, None, "not YAML"),
    "a bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{one}: &{one} [{', '.join([f'*{before}'] * 10)}]\n"
            for before, one in zip("abcdef", "bcdefg", strict=True)
        ),
        None,
        "more than 100000 values",
    ),
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("right", [RIGHT, TEMPLATES, MANIFOLDS])
def test_the_files_are_right_before_they_are_broken(tmp_path, right):
    path = write(tmp_path / "right.circuit.yaml", right)
    assert load_plan(path, base=True).checks


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_is_told_with_its_line(tmp_path, name):
    content, line, words = FILES[name]
    path = write(tmp_path / "wrong.circuit.yaml", content)
    with pytest.raises(ValueError, match=words) as caught:
        load_plan(path, base=True)
    message = str(caught.value)
    place = ":" if line is None else f":{line}: "
    assert message.startswith(str(path) + place), message
    assert "\n" not in message


def test_each_gives_one_collection_error(pytester):
    for number, (content, _, _) in enumerate(FILES.values()):
        write(pytester.path / f"f{number}.circuit.yaml", content)
    (pytester.path / "model").mkdir()
    run = pytester.runpytest_inprocess("--circuit-model=./model", "-p", "no:hypothesispytest")
    assert run.parseoutcomes() == {"errors": len(FILES)}
    said = [line for line in run.outlines if str(pytester.path) + "/f" in line]
    files = [re.search(r"/(f\d+)\.circuit\.yaml:", line)[1] for line in said]
    assert sorted(files) == sorted(f"f{number}" for number in range(len(FILES)))
    assert not [line for line in run.outlines if "Traceback" in line]


QUICK = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(path):
    """A plan, or one sentence that begins with the file."""
    try:
        found = load_plan(path, base=True)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{path}:"), message
        assert "\n" not in message
        return message
    assert isinstance(found, Plan)
    return found


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["L0H1", "accuracy", "induction", "circuitkeep.probes.Mixture", "all"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(scalars.filter(lambda one: one == one), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(content, path=()):
    """The keys that lead to every value in a structure."""
    inside = content.items() if isinstance(content, dict) else ()
    inside = enumerate(content) if isinstance(content, list) else inside
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@QUICK
@given(st.data())
def test_another_value_anywhere(tmp_path, data):
    right = data.draw(st.sampled_from([RIGHT, TEMPLATES]))
    content = yaml.safe_load(right)
    *way, last = data.draw(st.sampled_from(list(places(content))))
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(values)
    path = tmp_path / "changed.circuit.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    message = read(path)
    if isinstance(message, str) and "not YAML" not in message:
        assert re.match(rf"{re.escape(str(path))}:\d+: ", message), message


@QUICK
@given(values)
def test_anything_that_YAML_can_say(tmp_path, content):
    path = tmp_path / "any.circuit.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    assert isinstance(read(path), str)


@QUICK
@given(st.data())
def test_another_text_anywhere(tmp_path, data):
    right = data.draw(st.sampled_from([RIGHT, TEMPLATES]))
    start = data.draw(st.integers(0, len(right)))
    stop = data.draw(st.integers(start, min(len(right), start + 12)))
    instead = data.draw(st.text(max_size=6) | st.sampled_from(list("[]{}&*!|>%@'\"-:?,#\t")))
    path = write(
        Path(tmp_path) / "cut.circuit.yaml",
        (right[:start] + instead + right[stop:]).encode("utf-8", "surrogatepass"),
    )
    read(path)
