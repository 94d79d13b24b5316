"""What a checkpoint holds of a circuit's base: a measurement, and the rows it was made on.

Plain tensors, texts and containers only: checkpoints are loaded with ``weights_only=True``. The
rows are kept because a probe may have drawn them from the base model, which a resumed run no
longer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Circuit
from circuitkeep.evals.circuit import CircuitMeasurement
from circuitkeep.probes import ProbeBatch
from circuitkeep.reference import fingerprint_circuit

_PLAIN = ("tokens", "mask", "answer_row", "answer_position", "answer", "distractor")


Points = dict[str, Float[Tensor, "class d"]]


def save_base(
    circuit: Circuit,
    base: CircuitMeasurement,
    batch: ProbeBatch,
    manifolds: Mapping[str, Float[Tensor, "class d"]],
) -> dict[str, Any]:
    """What `load_base` reads.

    Args:
        circuit: Whose.
        base: What was measured.
        batch: On which rows.
        manifolds: Name -> the base's class means, which is all of them that drift is told by.
    """
    return {
        "circuit": fingerprint_circuit(circuit),
        "manifolds": dict(manifolds),
        "measurement": {
            "scores": dict(base.scores),
            "effect_nats": base.effect_nats,
            "behaviour": base.behaviour,
        },
        "batch": _pack(batch, circuit),
    }


def load_base(
    circuit: Circuit, saved: Mapping[str, Any]
) -> tuple[CircuitMeasurement, ProbeBatch, Points]:
    """The measurement, the rows and the manifolds of a checkpoint.

    Raises:
        ValueError: If they are of another circuit than `circuit`.
    """
    if saved["circuit"] != fingerprint_circuit(circuit):
        raise ValueError(
            f"the checkpoint's base for circuit {circuit.name!r} is of another circuit of that "
            "name; give the changed one a new name, or resume with the old one"
        )
    # Checkpoints of before there were manifolds have none.
    manifolds = saved.get("manifolds", {})
    return CircuitMeasurement(**saved["measurement"]), _unpack(saved["batch"]), manifolds


def _pack(batch: ProbeBatch, circuit: Circuit) -> dict[str, Any]:
    roles = {role.name for role in circuit.roles}
    variables = {manifold.variable for manifold in circuit.manifolds}
    return {
        **{name: getattr(batch, name) for name in _PLAIN},
        # As the places they mark, which are few.
        "targets": {
            role: target.nonzero().int() for role, target in batch.targets.items() if role in roles
        },
        "corrupted": None if batch.corrupted is None else _pack(batch.corrupted, circuit),
        "variables": {
            name: values.int() for name, values in batch.variables.items() if name in variables
        },
    }


def _unpack(packed: Mapping[str, Any]) -> ProbeBatch:
    tokens = packed["tokens"]
    targets = {}
    for role, places in packed["targets"].items():
        targets[role] = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
        targets[role][places.long().unbind(1)] = True
    corrupted = packed["corrupted"]
    return ProbeBatch(
        **{name: packed[name] for name in _PLAIN},
        targets=targets,
        corrupted=None if corrupted is None else _unpack(corrupted),
        variables={name: values.long() for name, values in packed.get("variables", {}).items()},
    )
