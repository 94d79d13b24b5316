"""Measurements: what a circuit still is and does, and what the model still can."""

from circuitkeep.evals.capability import evaluate_capability
from circuitkeep.evals.circuit import CircuitMeasurement, measure_circuit, retention

__all__ = ["CircuitMeasurement", "evaluate_capability", "measure_circuit", "retention"]
