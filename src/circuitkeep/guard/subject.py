"""What a callback is told about its subject: circuits, probes and tokenizers in any usual form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from circuitkeep.capture import Backend
from circuitkeep.capture.models import load_tokenizer
from circuitkeep.circuits import Circuit, load_circuit
from circuitkeep.probes import Probe, build_probe


def as_circuit(circuit: str | os.PathLike[str] | Circuit) -> Circuit:
    """A circuit, read from its file if need be."""
    return circuit if isinstance(circuit, Circuit) else load_circuit(circuit)


def as_probe(probe: Probe | Mapping[str, Any] | None) -> Probe | None:
    """A probe, built from its ``_target_`` mapping if need be."""
    return probe if probe is None or isinstance(probe, Probe) else build_probe(probe)


def tokenizer_of(backend: Backend, tokenizer: Any = None) -> Any:
    """The tokenizer given, or loaded from where it is named, or that of the model.

    Returns:
        None for a model that has none; probes of text then say what is missing.
    """
    if isinstance(tokenizer, str | os.PathLike):
        return load_tokenizer(tokenizer)
    if tokenizer is not None:
        return tokenizer
    own = getattr(backend.model, "tokenizer", None)
    name = getattr(getattr(backend.model, "config", None), "_name_or_path", "")
    if own is not None or not name:
        return own
    try:
        return load_tokenizer(name)
    except (ValueError, FileNotFoundError):
        return None
