"""How a night ended, in the terminal: what is wrong, since when, by how much, against what."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from circuitkeep.nightly import wording
from circuitkeep.nightly.trend import STATES, Series, Trends

STYLES = {"failed": "bold red", "fell": "bold red", "drifts": "bold yellow", "inconclusive": ""}


def not_passed(trends: Trends) -> list[Series]:
    """What the newest run measured and did not pass, the worst first."""
    found = (one for one in trends.now if one.last.state != "passed")
    return sorted(found, key=lambda one: STATES.index(one.last.state))


def render_errors(trends: Trends) -> Text:
    """A line for all that could not be measured in the newest run."""
    lines = [
        Text.assemble((f"not measured: {wording.about(error)}", "bold red"), f": {error.text}\n")
        for error in trends.errors
    ]
    return Text.assemble(*lines)


def render_table(shown: list[Series]) -> Table:
    """One line per check that did not pass."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ("", "checkpoint", "circuit", "check"):
        table.add_column(name, no_wrap=True)
    for name in ("now", "change", "against"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("since", no_wrap=True)
    for one in shown:
        last = one.last
        value = wording.figure(last.measured, last.measured.value)
        table.add_row(
            Text(wording.WORDS[last.state], STYLES[last.state]),
            Text(one.checkpoint),
            Text(one.circuit),
            Text(one.check),
            Text(f"{value} {wording.interval(last.measured)}"),
            Text(wording.change(one)),
            Text(wording.against(one)),
            Text("; ".join(part for part in (wording.since(one), wording.evidence(one)) if part)),
        )
    return table
