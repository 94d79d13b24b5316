import copy
from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.checks import Check, Examination, Outcome, Verdict, read_plan
from circuitkeep.checks.explain import advice, bar, explain, headline, measured, tokens
from circuitkeep.checks.worst import Prompt, to_blame, worst_prompts
from circuitkeep.circuits import Head

FAILED = Outcome(
    "wired", "causal", Verdict.FAILED, 0.5, 0.25, 0.75, 1.0, "nats per answer", 48, detail=""
)


@pytest.fixture
def plan(wired_circuit):
    tests = {"rows": 12, "seeds": [4, 7], "score": {"induction": 0.8}, "behaviour": 0.8}
    return read_plan(replace(wired_circuit, tests=tests), base=True)


@pytest.fixture
def damaged(wired_model):
    """Its induction head looks nowhere in particular."""
    model = copy.deepcopy(wired_model)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[2 * 64 : 3 * 64] = 0
    return model


def check_of(plan, name):
    return next(check for check in plan.checks if check.name == name)


def said(plan, name, model, base=None):
    examination = Examination([plan], model, base)
    check = check_of(plan, name)
    return explain(plan, check, examination.judge(plan, check), examination)


def test_the_first_line_has_the_figures_in_front():
    assert headline(FAILED) == ("0.50 [0.25, 0.75], asked for at least 1.00: wired causal failed")
    moved = replace(FAILED, check="no_migration", value=2.0, low=1.0, high=3.0, threshold=0.0)
    assert headline(moved).startswith("2 [1, 3], asked for at most 0: ")
    assert measured(replace(FAILED, value=float("nan"))) == "n/a [0.25, 0.75]"
    assert measured(replace(FAILED, value=-0.001)) == "0.00 [0.25, 0.75]"


def test_the_bar_by_hand():
    # From 0 to 1.1 in 48 characters: 0.25 is 11 in, 0.5 21, 0.75 32, 1 43.
    line = bar(FAILED).plain
    drawn = "─" * 11 + "━" * 10 + "●" + "━" * 11 + "─" * 10 + "┃" + "─" * 4
    assert line == f"  0.00 {drawn} 1.10  ● measured ┃ asked for"


@pytest.mark.parametrize("value", [float("nan"), -3.0, 0.0, 1e6])
def test_the_bar_of_any_value(value):
    outcome = replace(FAILED, value=value, low=value, high=value, threshold=0.0)
    line = bar(outcome).plain
    assert line.count("┃") + line.count("●") >= 2
    assert len(line.split(" ")[3]) == 48


def test_tokens_by_hand():
    attention = [0.0] * 12
    attention[0], attention[7], attention[11] = 0.03, 0.9, 0.07
    prompt = Prompt(1, 2, 0.0, tuple("abcdefghijkl"), tuple(attention), frozenset({4}), None, None)
    assert tokens(prompt).plain == "    a b … d [e]·.00 f g h·.90 i … k l·.07 ◂"
    assert any("on rgb" in str(span.style) for span in tokens(prompt).spans)


def test_what_would_decide(plan):
    undecided = replace(FAILED, verdict=Verdict.INCONCLUSIVE, rows=24, more_rows=241)
    assert advice(plan, undecided) == (
        "about 241 more prompts would decide: set tests.rows: 133 (now 12 for each of 2 seeds)"
    )
    assert "decide nothing" in advice(plan, replace(undecided, more_rows=None))
    counted = replace(undecided, check="replicates[induction]", more_rows=None)
    assert "raise tests.rows (now 12)" in advice(plan, counted)


def test_the_damaged_head_is_blamed(plan, wired_model, damaged):
    for base in (None, wired_model):
        examination = Examination([plan], damaged, base)
        now, before = examination.evidence(plan), examination.base_evidence(plan)
        for check in plan.checks:
            if check.needs_base and base is None:
                continue
            if check.part != "previous-token":
                assert to_blame(plan, check, now, before) == ("induction", Head(1, 2)), check


def test_the_worst_prompts_are_the_worst(plan, damaged):
    examination = Examination([plan], damaged)
    check = check_of(plan, "score[induction]")
    found = worst_prompts(plan, check, "induction", Head(1, 2), examination, 3)
    scores = examination.evidence(plan).measured.scores["induction"][:, 1, 2]
    assert [prompt.value for prompt in found] == pytest.approx(sorted(scores.tolist())[:3])
    batches = dict(zip(plan.seeds, examination.rows(plan), strict=True))
    backend = attach(damaged)
    for prompt in found:
        batch = batches[prompt.seed]
        query = len(prompt.tokens) - 1
        assert prompt.tokens == tuple(map(str, batch.tokens[prompt.row, : query + 1].tolist()))
        target = batch.targets["induction"][prompt.row, query]
        assert prompt.targets == frozenset(target.nonzero()[:, 0].tolist())
        assert sum(prompt.attention) == pytest.approx(1, abs=0.05)
        # The head looks everywhere alike.
        assert max(prompt.attention) == pytest.approx(1 / (query + 1), abs=0.01)
    with torch.no_grad():
        logits = backend.model(batches[4].tokens).logits
    row = worst_prompts(plan, check_of(plan, "behaviour"), "induction", Head(1, 2), examination, 1)
    assert row[0].given in {str(token) for token in logits.argmax(-1).flatten().tolist()}
    assert row[0].wanted != row[0].given


def test_all_of_it(plan, wired_model, damaged):
    text = said(plan, "score[induction]", damaged, wired_model).plain
    lines = text.splitlines()
    assert "wired score[induction] failed" in lines[0]
    assert "24 prompts, seeds 4, 7; asked by `tests` in the circuit's file" in lines[1]
    assert "┃" in lines[2]
    assert any("induction, lost it: L1H2" in line for line in lines)
    assert text.count("◂\n") + text.endswith("◂") >= 3
    assert max(map(len, lines)) <= 160


def test_without_a_base_the_best_others_are_named(plan, damaged):
    text = said(plan, "score[induction]", damaged).plain
    assert "induction, best heads not named: L" in text
    assert "L1H2" not in text.partition("best heads not named: ")[2].partition("\n")[0]


def test_what_heads_write_is_told_apart_from_where_they_look(plan, wired_model):
    mute = copy.deepcopy(wired_model)
    with torch.no_grad():
        mute.model.layers[1].self_attn.o_proj.weight.zero_()
    text = said(plan, "behaviour", mute, wired_model).plain
    assert "No named head looks elsewhere" in text
    assert "No head lost a job" in text
    assert "; answers " in text


def test_no_prompts(plan, damaged):
    examination = Examination([plan], damaged)
    check: Check = check_of(plan, "score[induction]")
    text = explain(plan, check, examination.judge(plan, check), examination, prompts=0).plain
    assert "◂" not in text
