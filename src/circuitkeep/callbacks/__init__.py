"""What a `lightning.Trainer` is given: the penalty, what is measured, and safe checkpoints."""

from circuitkeep.callbacks.capability import CapabilityEvals
from circuitkeep.callbacks.checkpoint import AtomicCheckpointIO
from circuitkeep.callbacks.gate import CircuitGate
from circuitkeep.callbacks.monitor import CircuitMonitor
from circuitkeep.callbacks.preservation import CircuitPreservation
from circuitkeep.callbacks.progress import StepProgressBar
from circuitkeep.callbacks.resume import ExactResume
from circuitkeep.guard import Constraint

__all__ = [
    "AtomicCheckpointIO",
    "CapabilityEvals",
    "CircuitGate",
    "CircuitMonitor",
    "CircuitPreservation",
    "Constraint",
    "ExactResume",
    "StepProgressBar",
]
