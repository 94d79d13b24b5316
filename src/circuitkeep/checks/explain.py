"""Why a check failed, to be read in ten seconds: what was asked, what is, where the heads look."""

from __future__ import annotations

import math

from jaxtyping import Float
from rich.text import Text
from torch import Tensor

from circuitkeep.checks.evidence import Evidence
from circuitkeep.checks.outcome import Outcome, Verdict
from circuitkeep.checks.plan import Check, Plan
from circuitkeep.checks.suite import Examination
from circuitkeep.checks.worst import Prompt, to_blame, worst_prompts
from circuitkeep.circuits import Head
from circuitkeep.evals.migration import migration

BAR = 48
"""Width of the bar, in characters."""
NOTED = 0.05
"""Attention from which on its share is written at a token."""
KEPT = 0.9
"""Of a head's score in the base: it still looks where it did."""
COUNTED = ("replicates", "no_migration")
_SOURCES = {
    "tests": "`tests` in the circuit's file",
    "baseline": "the baseline beside it",
    "thresholds": "`thresholds` in the circuit's file",
    "default": "default",
}


def explain(
    plan: Plan, check: Check, outcome: Outcome, examination: Examination, prompts: int = 3
) -> Text:
    """Say what is wrong; a `Text` holds styles for a terminal, its ``plain`` is the bare text.

    The first line says it all; then the heads, then prompts.

    Args:
        plan: Whose check it is.
        check: Which did not pass.
        outcome: What came of it.
        examination: Holds the model, its rows and what was measured on them.
        prompts: How many of the worst are shown.
    """
    now, base = examination.evidence(plan), examination.base_evidence(plan)
    role, head = to_blame(plan, check, now, base)
    score = now.measured.score(role, head)
    was = None if base is None else base.measured.score(role, head)
    lines = [
        Text(headline(outcome), style="bold"),
        Text(f"  {outcome.unit}; {_rows(plan, outcome)}; asked by {_SOURCES[check.source]}"),
        *([] if check.kind in COUNTED else [bar(outcome)]),
        *([Text(f"  {advice(plan, outcome)}")] if outcome.verdict == Verdict.INCONCLUSIVE else []),
        *([Text(f"  {outcome.detail}")] if outcome.detail and check.kind != "no_migration" else []),
        *_instead(plan, now, base),
    ]
    if was is not None and score >= KEPT * was and not check.part:
        lines.append(
            Text(
                "  No named head looks elsewhere; what they write has changed, or what comes of it"
            )
        )
    # A manifold is of all prompts: none of them fails it more than others.
    of_prompts = check.kind != "geometry"
    shown = worst_prompts(plan, check, role, head, examination, prompts) if of_prompts else ()
    if shown:
        than = "" if was is None else f", {was:.2f} in the base"
        lines += [
            Text.assemble(
                *("  Where ", (str(head), "bold"), f" ({role}) looks from the token before ◂, "),
                f"on the worst prompts; [where it should]: {score:.2f} in the mean{than}",
            )
        ]
    for prompt in shown:
        lines += [_prompt_head(prompt, check), tokens(prompt)]
    return Text("\n").join(lines)


def headline(outcome: Outcome) -> str:
    """What was measured against what was asked for, and the verdict; the figures in front.

    pytest's own summary cuts a line at the width of the terminal.
    """
    return (
        f"{measured(outcome)}, asked for {wanted(outcome)}: {outcome.circuit} {outcome.check} "
        f"{outcome.verdict.value}"
    )


def wanted(outcome: Outcome) -> str:
    """``at least 0.90``."""
    most = "at most" if _kind(outcome) == "no_migration" else "at least"
    return f"{most} {_figure(outcome, outcome.threshold)}"


def measured(outcome: Outcome) -> str:
    """``0.12 [0.08, 0.16]``."""
    value, low, high = (
        _figure(outcome, number) for number in (outcome.value, outcome.low, outcome.high)
    )
    return f"{value} [{low}, {high}]"


def advice(plan: Plan, outcome: Outcome) -> str:
    """What would decide a check that is inconclusive."""
    if outcome.more_rows is not None:
        rows = math.ceil((outcome.rows + outcome.more_rows) / len(plan.seeds))
        return (
            f"about {outcome.more_rows} more prompts would decide: set tests.rows: {rows} "
            f"(now {plan.rows} for each of {len(plan.seeds)} seeds)"
        )
    if _kind(outcome) in COUNTED:
        return f"more prompts for each seed would decide: raise tests.rows (now {plan.rows})"
    return "the value is at the threshold, where more prompts decide nothing: move the threshold"


def bar(outcome: Outcome) -> Text:
    """Interval, value and threshold on one line.

    From 0, or below if one of them is, to the largest of them and a tenth more.
    """
    marks = [outcome.value, outcome.low, outcome.high, outcome.threshold]
    marks = [mark for mark in marks if math.isfinite(mark)]
    least, most = min(0.0, *marks), max(0.0, *marks)
    most += 0.1 * (most - least) or 1.0

    def place(value: float) -> int:
        return round((value - least) / (most - least) * (BAR - 1))

    line = ["─"] * BAR
    if math.isfinite(outcome.low) and math.isfinite(outcome.high):
        for cell in range(place(outcome.low), place(outcome.high) + 1):
            line[cell] = "━"
    line[place(outcome.threshold)] = "┃"
    if math.isfinite(outcome.value):
        line[place(outcome.value)] = "●"
    text = Text(f"  {least:.2f} {''.join(line)} {most:.2f}  ● measured ┃ asked for")
    text.highlight_regex("[●━]", "red" if outcome.verdict == Verdict.FAILED else "yellow")
    text.highlight_regex("┃", "bold")
    return text


def tokens(prompt: Prompt) -> Text:
    """A prompt's tokens, but for those that the head need not and does not see."""
    end = len(prompt.tokens) - 1
    noted = {key for key, share in enumerate(prompt.attention) if share >= NOTED}
    wanted = {0, end} | noted | prompt.targets
    near = {key + step for key in wanted for step in (-1, 0, 1)}
    text, left_out = Text("    "), False
    for key, token in enumerate(prompt.tokens):
        if key not in near:
            left_out = True
            continue
        if left_out:
            text.append("… ")
            left_out = False
        share = prompt.attention[key]
        text.append(f"[{token}]" if key in prompt.targets else token, style=_shade(share))
        if key in noted or key in prompt.targets:
            text.append(f"·{share:.2f}".replace("0.", "."), style="bold")
        text.append(" ◂" if key == end else " ")
    return text


def _prompt_head(prompt: Prompt, check: Check) -> Text:
    looks = check.part == "identity" or check.kind in ("score", *COUNTED)
    value = (
        f"{prompt.value:+.2f} to the base" if check.kind == "retention" else f"{prompt.value:.2f}"
    )
    said = "" if looks else _said(prompt)
    return Text(f"  seed {prompt.seed}, prompt {prompt.row}: {value}{said}")


def _said(prompt: Prompt) -> str:
    if prompt.wanted is None:
        return ""
    if prompt.wanted == prompt.given:
        return f"; answers {prompt.given}, rightly"
    return f"; answers {prompt.given} for {prompt.wanted}"


def _instead(plan: Plan, now: Evidence, base: Evidence | None) -> list[Text]:
    """The heads that have taken a job up; without a base, the best that are not named."""
    lines = []
    for role in plan.circuit.roles:
        scores = now.measured.scores[role.name].nanmean(0)
        if base is None:
            said = [f"{head} {score:.2f}" for head, score in _best_unnamed(plan, role.name, scores)]
            lines.append(Text(f"  {role.name}, best heads not named: {', '.join(said) or 'none'}"))
            continue
        before = base.measured.scores[role.name].nanmean(0)
        moved = migration(role, scores, before)
        for verb, heads in (("lost it", moved.lost), ("took it up", moved.risen)):
            said = [
                f"{head} {float(scores[head.layer, head.index]):.2f} "
                f"(base {float(before[head.layer, head.index]):.2f})"
                for head in heads
            ]
            if said:
                lines.append(Text(f"  {role.name}, {verb}: {', '.join(said)}"))
    if not lines:
        lines.append(Text("  No head lost a job or took one up."))
    return lines


def _best_unnamed(
    plan: Plan, role: str, scores: Float[Tensor, "layer head"], most: int = 3
) -> list[tuple[Head, float]]:
    named = next(one.heads for one in plan.circuit.roles if one.name == role)
    heads = [
        (Head(layer, index), score)
        for layer, row in enumerate(scores.tolist())
        for index, score in enumerate(row)
        if Head(layer, index) not in named
    ]
    return sorted(heads, key=lambda one: -one[1])[:most]


def _rows(plan: Plan, outcome: Outcome) -> str:
    seeds = ", ".join(map(str, plan.seeds))
    return f"{outcome.rows} prompts, seed{'s' * (len(plan.seeds) > 1)} {seeds}"


def _shade(share: float) -> str:
    """From the terminal's own background to a full blue."""
    if share < NOTED:
        return ""
    return (
        f"white on rgb({round(40 - 40 * share)},{round(40 + 50 * share)},{round(60 + 195 * share)})"
    )


def _kind(outcome: Outcome) -> str:
    return outcome.check.partition("[")[0]


def _figure(outcome: Outcome, number: float) -> str:
    if not math.isfinite(number):
        return "n/a"
    return f"{number:.0f}" if _kind(outcome) in COUNTED else f"{round(number, 2) + 0.0:.2f}"
