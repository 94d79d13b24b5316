"""pytest in pytest: circuit files as tests of a hand-wired model."""

import copy
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

import circuitkeep.pytest_plugin.items
import circuitkeep.pytest_plugin.summary  # imported once, not anew by every run
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.models import save_model
from circuitkeep.checks import suite
from circuitkeep.circuits import Head, Manifold, Role, save_circuit
from circuitkeep.pytest_plugin import SUFFIX

pytest_plugins = "pytester"

TESTS = {
    "rows": 24,
    "seeds": [1, 2],
    "score": {"previous-token": 0.8, "induction": 0.8},
    "behaviour": 0.8,
    "retention": {"causal": 0.8},
}
ALL = [
    *("score[previous-token]", "replicates[previous-token]"),
    *("score[induction]", "replicates[induction]", "causal", "behaviour"),
    *("retention[identity]", "retention[causal]", "retention[behaviour]", "no_migration"),
]


@pytest.fixture
def folder(pytester, wired_model, wired_circuit):
    """`base`, `damaged` (its induction head looks nowhere), and `circuits/wired.circuit.yaml`."""
    save_model(wired_model, pytester.path / "base")
    damaged = copy.deepcopy(wired_model)
    with torch.no_grad():
        damaged.model.layers[1].self_attn.q_proj.weight[2 * 64 : 3 * 64] = 0
    save_model(damaged, pytester.path / "damaged")
    (pytester.path / "circuits").mkdir()
    write(pytester.path, wired_circuit, TESTS)
    return pytester.path


def write(folder, circuit, tests):
    path = folder / "circuits" / f"{circuit.name}.circuit.yaml"
    save_circuit(replace(circuit, tests=tests), path)
    return path


@pytest.fixture
def run(pytester, folder):
    """Runs pytest on the circuits; the first argument names the model."""

    def run(model, *arguments, base=None):
        models = [f"--circuit-model={model}"] if model else []
        models += [f"--circuit-base={base}"] if base else []
        spared = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
        return pytester.runpytest_inprocess(*spared, *models, *arguments)

    return run


def test_the_suffix_is_that_of_suites():
    assert SUFFIX == suite.SUFFIX


def test_green(run):
    found = run("base", "-v", base="base")
    assert found.ret == 0
    found.assert_outcomes(passed=len(ALL))
    for name in ALL:
        place = re.escape(f"circuits/wired.circuit.yaml::{name} PASSED")
        found.stdout.re_match_lines([f"{place}.*"])
    found.stdout.fnmatch_lines(["circuits: model base, base base"])
    found.stdout.re_match_lines(
        [r"wired +score\[previous-token\] +1\.00 \[.*at least 0\.80 +passed"]
    )


def test_green_is_short(run):
    found = run("base")
    found.assert_outcomes(passed=6, skipped=1)
    found.stdout.no_fnmatch_line("*at least*")


def test_red_says_which_check_and_which_head(run):
    found = run("damaged", base="base")
    assert found.ret == 1
    failed = {name for name in ALL if f"wired.circuit.yaml::{name} - " in found.stdout.str()}
    assert failed >= {"score[induction]", "behaviour", "retention[behaviour]", "no_migration"}
    assert not failed & {"score[previous-token]", "replicates[previous-token]"}
    text = re.split(r"\n___+ wired (\S+) ___+\n", found.stdout.str())
    text = dict(zip(text[1::2], text[2::2], strict=True))["score[induction]"]
    lines = text.splitlines()
    assert re.match(r"0\.\d\d \[0\.\d\d, 0\.\d\d\], asked for at least 0\.80: wired", lines[0])
    assert "48 prompts, seeds 1, 2" in text
    assert re.search(r"induction, lost it: L1H2 0\.\d\d \(base 1\.00\)", text)
    assert re.search(r"Where L1H2 \(induction\) looks .* 1\.00 in the base", text)
    assert len(re.findall(r"seed \d, prompt \d+: 0\.\d\d", text)) == 3
    assert len(re.findall(r"\[\d+\]·\.\d\d.*◂", text)) == 3
    assert "Traceback" not in found.stdout.str()
    assert "\x1b" not in found.stdout.str()


@pytest.mark.parametrize("ci", ["", "true"])
def test_prompts_are_shown_once_for_a_circuit(ci, run, monkeypatch):
    monkeypatch.setenv("CI", ci)  # where pytest's short summary is not cut
    text = run("damaged", base="base").stdout.str()
    assert len(re.findall(r"seed \d, prompt \d+: ", text)) == 3


def test_colour(run):
    found = run("damaged", "--color=yes", "-k", "score")
    assert re.search(r"\x1b\[[\d;]*48;[\d;]*m\[", found.stdout.str())


def test_inconclusive(run, folder, wired_circuit):
    write(folder, wired_circuit, {"rows": 12, "seeds": [1, 2], "causal": None, "behaviour": 0.95})
    found = run("base", "-v")
    assert found.ret == 0
    assert found.parseoutcomes() == {"inconclusive": 1}
    found.stdout.fnmatch_lines(["*::behaviour INCONCLUSIVE*"])
    match = re.search(
        r"wired: behaviour: about (\d+) more prompts would decide: set tests.rows: (\d+) \(now 12",
        found.stdout.str(),
    )
    more, rows = map(int, match.groups())
    assert rows == -(-(24 + more) // 2)
    found = run("base", "--circuit-strict")
    assert found.ret == 1
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*asked for at least 0.95: wired behaviour inconclusive"])
    write(folder, wired_circuit, {"rows": rows, "seeds": [1, 2], "causal": None, "behaviour": 0.95})
    run("base", "--circuit-strict").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("-k induction and score", ["score[previous-token]", "score[induction]"]),
        ("-k causal and not ioi", ["causal", "retention[causal]"]),
        ("-k causal and not wired", []),
        ("-m circuit", ALL),
        ("-m not circuit", []),
    ],
)
def test_selection(run, chosen, names):
    found = run("base", "--collect-only", "-q", *chosen.split(" ", 1), base="base")
    assert [line.partition("::")[2] for line in found.outlines if "::" in line] == names


def test_one_check_by_its_name(run, folder):
    path = folder / "circuits" / "wired.circuit.yaml"
    run("base", f"{path}::score[induction]").assert_outcomes(passed=1)
    run("base", f"{path}::score").assert_outcomes(passed=2)


def test_collecting_loads_no_model(run, folder):
    (folder / "empty").mkdir()
    found = run("empty", "--collect-only", "-q", base="empty")
    assert found.ret == 0
    assert len([line for line in found.outlines if "::" in line]) == len(ALL)


def test_junit(run, folder):
    run("damaged", "--junitxml=out.xml", base="base")
    cases = {case.get("name"): case for case in ElementTree.parse("out.xml").iter("testcase")}
    assert list(cases) == ALL
    case = cases["score[induction]"]
    properties = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert properties["circuit"] == "wired"
    assert properties["verdict"] == "failed"
    assert float(properties["threshold"]) == 0.8
    low, value, high = (float(properties[name]) for name in ("low", "value", "high"))
    assert low < value < high < 0.8
    assert "\\x1b" not in case.find("failure").text


def test_junit_of_what_is_inconclusive(run, folder, wired_circuit):
    write(folder, wired_circuit, {"rows": 12, "seeds": [1], "causal": None, "behaviour": 0.99})
    run("base", "--junitxml=out.xml")
    (case,) = ElementTree.parse("out.xml").iter("testcase")
    assert "more prompts would decide" in case.find("skipped").get("message")


@pytest.mark.slow
def test_xdist(run, folder, wired_circuit):
    write(folder, replace(wired_circuit, name="other"), TESTS)
    found = run("damaged", "-n2", "-v", base="base")
    outcomes = found.parseoutcomes()
    assert outcomes["passed"] + outcomes["failed"] == 2 * len(ALL)
    workers = {"wired": set(), "other": set()}
    for worker, name in re.findall(r"\[(gw\d)\].* circuits/(\w+)\.circuit", found.stdout.str()):
        workers[name].add(worker)
    assert [len(names) for names in workers.values()] == [1, 1]
    found.stdout.re_match_lines([r"wired +score\[previous-token\] +1\.00 \["])


def test_models_are_loaded_once(run, folder, wired_circuit, monkeypatch):
    write(folder, replace(wired_circuit, name="other"), TESTS)
    loaded, made = [], []
    load, examine = suite.load_checkpoint, circuitkeep.pytest_plugin.items.Examination
    monkeypatch.setattr(suite, "load_checkpoint", lambda *a: loaded.append(a[0]) or load(*a))
    monkeypatch.setattr(
        circuitkeep.pytest_plugin.items, "Examination", lambda *a: made.append(a) or examine(*a)
    )
    run("base", base="base").assert_outcomes(passed=2 * len(ALL))
    assert (loaded, len(made)) == (["base", "base"], 1)


def test_only_what_is_chosen_is_measured(run, monkeypatch):
    seen = []
    gather = suite.gather
    monkeypatch.setattr(suite, "gather", lambda plan, *a: seen.append(plan) or gather(plan, *a))
    run("base", "-k", "behaviour", base="base")
    assert [[check.name for check in plan.checks] for plan in seen] == [
        ["behaviour", "retention[behaviour]"]
    ] * 2


def test_without_a_model_folders_hold_no_circuits(run, pytester):
    found = run(None)
    assert found.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["circuits/wired.circuit.yaml"], "wired.circuit.yaml: no model to test; add --circuit-m"),
        (["circuits/wired.circuit.yaml::causal"], "causal: no model to test; add --circuit-model"),
        (["--circuit-base=base"], "--circuit-base: no model to test; add --circuit-model"),
        (["--circuit-model=./nowhere"], "--circuit-model: there is nothing at ./nowhere"),
        (["--circuit-model=base", "--circuit-base=./no"], "--circuit-base: there is nothing at"),
    ],
)
def test_usage(run, arguments, words):
    found = run(None, *arguments)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in found.errlines if line]
    assert len(errors) == 1, errors
    assert words in errors[0]


def test_what_is_no_model(run, folder):
    (folder / "empty").mkdir()
    found = run("empty", "-k", "score")
    found.assert_outcomes(errors=2)
    lines = [line for line in found.outlines if line.startswith("cannot load a model from")]
    assert len(lines) == 2
    assert "Traceback" not in found.stdout.str()


def test_heads_outside_the_model(run, folder, wired_circuit):
    far = (Role("induction", (Head(1, 2), Head(7, 0))),)
    path = write(folder, replace(wired_circuit, name="far", roles=far), {})
    number = 1 + path.read_text().splitlines().index("  - L7H0")
    for base in (None, "base"):
        found = run("base", "-k", "causal and not retention", base=base)
        found.assert_outcomes(passed=1, errors=1)
        found.stdout.fnmatch_lines(
            [f"*far.circuit.yaml:{number}: *head L7H0 is outside the model*"]
        )
        assert "Traceback" not in found.stdout.str()


def test_two_of_one_name(run, folder, wired_circuit):
    text = (folder / "circuits" / "wired.circuit.yaml").read_text()
    (folder / "circuits" / "again.circuit.yaml").write_text(text)
    found = run("base")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*wired.circuit.yaml:1: *again.circuit.yaml holds*; rename one"])


def test_what_a_file_asks_of_a_base_is_skipped_without_one(run):
    found = run("base", "-rs", "-k", "retention")
    found.assert_outcomes(skipped=1)
    found.stdout.fnmatch_lines(["*compares with a base model: name one by --circuit-base"])


def test_ini(run, pytester):
    pytester.makeini("[pytest]\ncircuit_model = base\ncircuit_base = base\ncircuit_strict = true\n")
    found = run(None, "circuits")
    found.assert_outcomes(passed=len(ALL))
    found.stdout.fnmatch_lines(["circuits: model */base, base */base, strict"])


PYTHON = """
def test_layers(circuit_model, circuit_base):
    assert circuit_model.n_layers == circuit_base.n_layers == 2

def test_circuit(assert_circuit):
    assert len(assert_circuit("circuits/wired.circuit.yaml")) == {count}
"""


def test_fixtures(run, pytester):
    pytester.makepyfile(PYTHON.format(count=len(ALL)))
    run("base", "-k", "test_", base="base").assert_outcomes(passed=2)
    found = run("damaged", "-k", "test_circuit", base="base")
    found.assert_outcomes(failed=1)
    found.stdout.re_match_lines([r"E +AssertionError: 0\.\d\d \[.*asked for at least 0\.80: wired"])
    found = run(None, "-rs")
    found.assert_outcomes(skipped=2)
    found.stdout.fnmatch_lines(["*no model to test: name one by --circuit-model"])


def test_nothing_heavy_is_imported(pytester):
    pytester.makepyfile("import sys\ndef test_light(): assert 'torch' not in sys.modules")
    pytester.runpytest_subprocess("-p", "no:jaxtyping").assert_outcomes(passed=1)


def test_manifolds_are_checked_beside_heads(run, folder, wired_circuit):
    places = Manifold("places", "position", 0, (1, 12), 1, 3)
    off = dict.fromkeys(("causal", "retention", "no_migration"))
    tests = {"rows": 24, "seeds": [1], "geometry": {"places": {"place": 0.9}}, **off}
    write(folder, replace(wired_circuit, manifolds=(places,)), tests)
    run("base", "circuits", base="base").assert_outcomes(passed=1)
    with torch.no_grad():
        moved = load_checkpoint("base", "base")
        moved.model.layers[0].self_attn.o_proj.weight.mul_(-3)
    save_model(moved, folder / "moved")
    found = run("moved", "circuits", base="base")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*asked for at least 0.90: wired geometry[[]places.place] failed"])
    found.stdout.fnmatch_lines(["*moved most, in units of the manifold's radius*"])
    # Without a base there is nothing to compare with.
    run("base", "circuits").assert_outcomes(skipped=1)
