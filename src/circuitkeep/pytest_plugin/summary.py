"""All checks of a run in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitkeep.checks import Outcome, Verdict
from circuitkeep.checks.explain import measured, wanted

_COLOURS = {Verdict.PASSED: "green", Verdict.FAILED: "red", Verdict.INCONCLUSIVE: "yellow"}


def print_summary(reporter: Any, found: Sequence[Mapping[str, Any]]) -> None:
    """Print what was measured, and what would decide what is inconclusive.

    Args:
        reporter: pytest's terminal reporter.
        found: The fields of an `Outcome`, and ``advice``, of every check.
    """
    reporter.section("circuits")
    colour = "standard" if reporter.hasmarkup else None
    console = Console(
        file=StringIO(), force_terminal=reporter.hasmarkup, color_system=colour, width=120
    )
    advices = []
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("circuit", "check", "value [95% interval]", "asked for", ""):
        table.add_column(name, no_wrap=True)
    last = None
    for fields in sorted(found, key=lambda one: one["circuit"]):
        said = dict(fields)
        advice = said.pop("advice")
        outcome = Outcome(**{**said, "verdict": Verdict(said["verdict"])})
        verdict = Text(outcome.verdict.value, style=_COLOURS[outcome.verdict])
        circuit = "" if outcome.circuit == last else outcome.circuit
        texts = (circuit, outcome.check, measured(outcome), wanted(outcome))
        table.add_row(*map(Text, texts), verdict)
        last = outcome.circuit
        if advice:
            advices.append(f"{outcome.circuit}: {outcome.check}: {advice}")
    with console.capture() as captured:
        console.print(table)
    reporter.write(captured.get())
    for advice in advices:
        reporter.write_line(advice)
