"""What the base model did on the train probes: captured once, saved, and checked when loaded."""

from circuitkeep.reference.kept import (
    Fingerprint,
    Reference,
    capture_reference,
    fingerprint_circuit,
    fingerprint_probe,
    load_reference,
)
from circuitkeep.reference.points import check_manifolds
from circuitkeep.reference.rows import GuardedRows, Question, guard_rows, observe, observe_all

__all__ = [
    "Fingerprint",
    "GuardedRows",
    "Question",
    "Reference",
    "capture_reference",
    "check_manifolds",
    "fingerprint_circuit",
    "fingerprint_probe",
    "guard_rows",
    "load_reference",
    "observe",
    "observe_all",
]
