"""The penalty for a drifting circuit, in whosever training."""

from circuitkeep.guard.constraint import Constraint
from circuitkeep.guard.guard import Guard
from circuitkeep.guard.training import Training

__all__ = ["Constraint", "Guard", "Training"]
