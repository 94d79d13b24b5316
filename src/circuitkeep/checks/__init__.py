"""Unit tests for circuits: what a file asks of a circuit, and whether a model passes."""

from circuitkeep.checks.assertion import assert_circuit
from circuitkeep.checks.baseline import Baseline, Pinned, baseline_path, read_baseline
from circuitkeep.checks.evidence import Evidence, gather, make_rows
from circuitkeep.checks.judge import judge
from circuitkeep.checks.outcome import Outcome, Verdict
from circuitkeep.checks.plan import Check, Plan, read_plan
from circuitkeep.checks.suite import Examination, circuit_files, load_plan

__all__ = [
    "Baseline",
    "Check",
    "Evidence",
    "Examination",
    "Outcome",
    "Pinned",
    "Plan",
    "Verdict",
    "assert_circuit",
    "baseline_path",
    "circuit_files",
    "gather",
    "judge",
    "load_plan",
    "make_rows",
    "read_baseline",
    "read_plan",
]
