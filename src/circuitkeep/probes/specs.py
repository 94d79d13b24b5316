"""Reading what a templated probe's config says, with errors that name the nearest right word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitkeep.circuits import did_you_mean
from circuitkeep.probes.base import Effect
from circuitkeep.probes.prompts import Attention, Place


def read_attention(role: str, spec: object) -> Attention:
    """Read ``{from: answer, to: name, align: token}``."""
    if not isinstance(spec, Mapping) or not {"from", "to"} <= set(spec):
        raise ValueError(f"role {role!r}: targets must be {{from: place, to: place}}, got {spec!r}")
    check_keys(f"role {role!r}", spec, ("from", "to", "align", "writes", "backs_up"))
    align = spec.get("align")
    if align not in (None, "token", "span"):
        raise ValueError(f"role {role!r}: align must be 'token' or 'span', got {align!r}")
    to = Place.parse(str(spec["to"]))
    if to.name in ("answer", "end"):
        raise ValueError(f"role {role!r}: keys must stand in the context, not at {to.text!r}")
    by_token = None if align is None else align == "token"
    return Attention(Place.parse(str(spec["from"])), to, by_token)


def read_effect(role: str, spec: Mapping[str, Any]) -> Effect | None:
    """Read ``writes`` or ``backs_up``."""
    said = {key: spec[key] for key in ("writes", "backs_up") if key in spec}
    for key, value in said.items():
        if not isinstance(value, str | None):
            raise ValueError(f"role {role!r}: {key} must be a text, got {value!r}")
    try:
        return Effect(**said) if said else None
    except ValueError as error:
        raise ValueError(f"role {role!r}: {error}") from error


def check_keys(where: str, mapping: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a key that is not `known`, naming the nearest."""
    for key in mapping:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}" + did_you_mean(str(key), known))


def read_texts(name: str, value: object) -> tuple[str, ...]:
    """Read a list of different texts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    if not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"{name}: {max(value, key=list(value).count)!r} stands twice")
    return tuple(value)
