"""Heads, roles and circuits, and the strict YAML they are written in."""

from circuitkeep.circuits.circuit import BEHAVIOURS, Circuit, Head, Role
from circuitkeep.circuits.errors import CircuitError, did_you_mean
from circuitkeep.circuits.file import (
    dump_circuit,
    load_circuit,
    located,
    parse_circuit,
    save_circuit,
)
from circuitkeep.circuits.manifold import Manifold

__all__ = [
    "BEHAVIOURS",
    "Circuit",
    "CircuitError",
    "Head",
    "Manifold",
    "Role",
    "did_you_mean",
    "dump_circuit",
    "load_circuit",
    "located",
    "parse_circuit",
    "save_circuit",
]
