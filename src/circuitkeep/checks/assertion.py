"""A circuit's checks as one assertion, for tests that are written in Python."""

from __future__ import annotations

import os
from typing import Any

from circuitkeep.checks.explain import explain
from circuitkeep.checks.outcome import Outcome, Verdict
from circuitkeep.checks.suite import Examination, Source, load_plan
from circuitkeep.circuits import located


def assert_circuit(
    model: Source,
    circuit: str | os.PathLike[str],
    base: Source | None = None,
    *,
    tokenizer: Any = None,
    strict: bool = False,
) -> tuple[Outcome, ...]:
    """Hold a model to all checks of a circuit file.

    Args:
        model: Directory, hub name or checkpoint; or a model at hand.
        circuit: The file.
        base: What the model came of; without one nothing is compared.
        tokenizer: Where to load one, or one at hand; default: the base's or the model's own.
        strict: A check that is inconclusive fails.

    Returns:
        What came of each check, those that are inconclusive among them.

    Raises:
        AssertionError: If a check fails, with what pytest shows of it.
        FileNotFoundError: If there is no such file or model.
        ValueError: For what is wrong in the file, or does not fit the model.
    """
    __tracebackhide__ = True
    plan = load_plan(circuit, base is not None)
    examination = Examination([plan], model, base, tokenizer)
    with located(circuit):
        outcomes = tuple(examination.judge(plan, check) for check in plan.checks)
    fails = (Verdict.FAILED, Verdict.INCONCLUSIVE) if strict else (Verdict.FAILED,)
    wrong = [
        explain(plan, check, outcome, examination).plain
        for check, outcome in zip(plan.checks, outcomes, strict=True)
        if outcome.verdict in fails
    ]
    if wrong:
        raise AssertionError("\n\n".join(wrong))
    return outcomes
