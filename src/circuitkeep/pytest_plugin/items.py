"""Circuit files as pytest collects them: one item per check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.models import quiet
from circuitkeep.checks import Check, Examination, Outcome, Plan, Verdict, load_plan
from circuitkeep.checks.explain import advice, explain, headline
from circuitkeep.circuits import CircuitError, located
from circuitkeep.pytest_plugin import ASKED

NAMES = pytest.StashKey[dict[str, Path]]()
"""Of the circuits that were collected -> their files."""
EXAMINATION = pytest.StashKey[Examination]()
SHOWN = pytest.StashKey[set[str]]()
"""Circuits whose worst prompts were shown: they are much the same for all checks."""
PROMPTS = 3
BROKEN = pytest.StashKey[str]()
"""Why the models cannot be loaded; told for every item, tried once."""


class CircuitFile(pytest.File):
    """A circuit file."""

    def collect(self) -> Iterator[CheckItem]:
        """Its checks.

        Raises:
            Collector.CollectError: For what is wrong in it, naming file, line and key.
        """
        asked = self.config.stash[ASKED]
        try:
            # Of the checks that need a base, those that the file asks for are told as skipped.
            plan = load_plan(self.path, base=True)
            self._check_name(plan.circuit.name)
        except (ValueError, OSError) as error:
            raise self.CollectError(str(error)) from error
        for check in plan.checks:
            if asked.base is not None or not check.needs_base or check.source == "tests":
                yield CheckItem.from_parent(self, name=check.name, plan=plan, check=check)

    def _check_name(self, name: str) -> None:
        other = self.config.stash.setdefault(NAMES, {}).setdefault(name, self.path)
        if other != self.path:
            with located(self.path):
                raise CircuitError(f"{other} holds a circuit {name!r}, too; rename one", "name")


class CheckItem(pytest.Item):
    """One check of a circuit, on the run's model."""

    def __init__(self, *, plan: Plan, check: Check, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan, self.check = plan, check
        self.outcome: Outcome | None = None
        self._explained = Text()
        circuit = plan.circuit
        self.extra_keyword_matches |= {circuit.name, check.kind}
        self.extra_keyword_matches |= {role.name for role in circuit.roles}
        self.add_marker("circuit")
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(circuit.name))

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """Where it comes from, and the line above a failure."""
        return self.path, 0, f"{self.plan.circuit.name} {self.check.name}"

    def setup(self) -> None:
        """Measure what it looks at; what goes wrong here is an error, no failure of the model."""
        asked = self.config.stash[ASKED]
        if self.check.needs_base and asked.base is None:
            pytest.skip("compares with a base model: name one by --circuit-base")
        found = examination(self.session)
        try:
            with located(self.path):
                self.plan = found.plan(self.plan.circuit.name)
                found.evidence(self.plan)
        except (ValueError, OSError) as error:
            wrong = str(error)
        else:
            return
        pytest.fail(wrong, pytrace=False)  # here, that no other error be shown as its cause

    def runtest(self) -> None:
        """Hold the model to it."""
        found = examination(self.session)
        outcome = self.outcome = found.judge(self.plan, self.check)
        self.user_properties += _properties(outcome)
        if outcome.verdict == Verdict.PASSED:
            return
        said = headline(outcome)
        if outcome.verdict == Verdict.INCONCLUSIVE and not self.config.stash[ASKED].strict:
            pytest.skip(f"{said}; {advice(self.plan, outcome)}")
        shown = self.config.stash.setdefault(SHOWN, set())
        prompts = 0 if outcome.circuit in shown else PROMPTS
        shown.add(outcome.circuit)
        self._explained = explain(self.plan, self.check, outcome, found, prompts)
        pytest.fail(self._explained.plain, pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The explanation, in colour where the terminal has it; of a bug, the traceback."""
        shown: Any = super().repr_failure(excinfo, style)
        if isinstance(excinfo.value, pytest.fail.Exception) and self._explained:
            shown.toterminal = partial(_print, self._explained)
            # Of this, in CI, pytest prints all lines in its short summary.
            shown.reprcrash.message = self._explained.plain.splitlines()[0]
        return shown

    def add_outcome(self, report: pytest.TestReport) -> None:
        """Put what was measured on the report; xdist carries it to the process that prints."""
        if self.outcome is None:
            return
        fields = asdict(self.outcome)
        fields["verdict"] = self.outcome.verdict.value
        fields["advice"] = ""
        if self.outcome.verdict == Verdict.INCONCLUSIVE:
            fields["advice"] = advice(self.plan, self.outcome)
        report.circuit = fields  # type: ignore[attr-defined]
        if report.skipped and isinstance(report.longrepr, tuple):
            report.longrepr = (str(self.path), 1, report.longrepr[2])


def examination(session: pytest.Session) -> Examination:
    """The one examination of this process: of the checks that were chosen."""
    if EXAMINATION not in session.stash and BROKEN not in session.stash:
        asked = session.config.stash[ASKED]
        assert asked.model is not None
        quiet()
        _share_cores()
        plans = _plans(session.items, asked.base)
        made = Examination(plans, asked.model, asked.base, asked.tokenizer)
        try:
            _ = made.backend, made.tokenizer
            session.stash[EXAMINATION] = made
        except (ValueError, OSError) as error:
            session.stash[BROKEN] = str(error)
    if BROKEN in session.stash:
        pytest.fail(session.stash[BROKEN], pytrace=False)
    return session.stash[EXAMINATION]


def _share_cores() -> None:
    """Workers that take all cores each hold one another up; unless the user has said how many."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def load_base(path: str) -> Backend:
    """The base by itself, for tests that are written in Python."""
    return attach(load_checkpoint(path, path))


def _plans(items: Iterable[pytest.Item], base: str | None) -> list[Plan]:
    """The circuits of the items that can be run, each with those of its checks alone."""
    chosen: dict[str, list[CheckItem]] = {}
    for item in items:
        if isinstance(item, CheckItem) and (base is not None or not item.check.needs_base):
            chosen.setdefault(item.plan.circuit.name, []).append(item)
    return [
        replace(group[0].plan, checks=tuple(dict.fromkeys(item.check for item in group)))
        for group in chosen.values()
    ]


def _properties(outcome: Outcome) -> list[tuple[str, object]]:
    """What ``--junitxml`` writes."""
    named = ("circuit", "check", "value", "low", "high", "threshold", "unit", "rows")
    verdict = ("verdict", outcome.verdict.value)
    return [verdict, *((name, getattr(outcome, name)) for name in named)]


def _print(text: Text, writer: Any) -> None:
    if not writer.hasmarkup:
        writer.line(text.plain)
        return
    console = Console(file=StringIO(), force_terminal=True, color_system="256")
    with console.capture() as captured:
        console.print(text, soft_wrap=True, highlight=False)
    writer.line(captured.get().rstrip("\n"))
