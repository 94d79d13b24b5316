"""A suite of circuits over a list of checkpoints: what a night measures."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timezone

from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.checks import Check, Examination, Outcome, Plan
from circuitkeep.nightly.artifacts import fetched
from circuitkeep.nightly.history import COUNTED, Event, Measurement

NORMAL = 1.96
"""Standard errors from a mean to the end of its interval."""


def redrawn(plan: Plan, night: date) -> Plan:
    """The same checks on rows of the night's own: the same for every model of that night."""
    return replace(plan, seeds=tuple(_seed(f"{night.isoformat()}/{seed}") for seed in plan.seeds))


def measure(
    plans: Sequence[Plan],
    checkpoints: Mapping[str, str],
    base: str | None = None,
    tokenizer: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[list[Measurement], list[Event]]:
    """Hold every checkpoint to every check.

    What goes wrong with one checkpoint, or one circuit in it, is an event and stops no other.

    Args:
        plans: The circuits.
        checkpoints: Name -> path, hub name or artifact.
        base: The base model, which is measured once.
        tokenizer: Where to load one, if not from the base or the checkpoint.
        progress: Called with the name of the model that comes next.

    Raises:
        FileNotFoundError: If there is no base.
        ValueError: If the base cannot be loaded.
    """
    measurements: list[Measurement] = []
    events: list[Event] = []
    progress("the base" if base is not None else next(iter(checkpoints)))
    first = Examination(plans, base or "", base, tokenizer)
    first.measure_base()
    for number, (name, path) in enumerate(checkpoints.items()):
        if base is not None or number:
            progress(name)
        try:
            with fetched(path) as (place, called):
                _examine(first.beside(place), name, called, measurements, events)
        except Exception as error:  # one broken checkpoint must not cost the others their night
            events.append(_failed(error, name))
        gc.collect()
    return measurements, events


def _examine(
    examination: Examination,
    name: str,
    path: str,
    measurements: list[Measurement],
    events: list[Event],
) -> None:
    fingerprint = fingerprint_model(examination.backend.model)
    for plan in examination.plans:
        try:
            found = [
                _measurement(plan, check, examination.judge(plan, check), name, path, fingerprint)
                for check in plan.checks
            ]
        except Exception as error:  # nor one circuit the others
            events.append(_failed(error, name, plan.circuit.name))
        else:
            measurements += found


def _measurement(
    plan: Plan, check: Check, outcome: Outcome, name: str, path: str, fingerprint: str
) -> Measurement:
    error = math.nan if check.kind in COUNTED else (outcome.high - outcome.low) / (2 * NORMAL)
    return Measurement(
        checkpoint=name,
        path=path,
        fingerprint=fingerprint,
        circuit=outcome.circuit,
        check=outcome.check,
        verdict=outcome.verdict.value,
        value=float(outcome.value),
        low=float(outcome.low),
        high=float(outcome.high),
        error=error,
        threshold=float(outcome.threshold),
        unit=outcome.unit,
        rows=outcome.rows,
        seeds=" ".join(map(str, plan.seeds)),
        detail=outcome.detail,
    )


def _failed(error: Exception, checkpoint: str, circuit: str = "") -> Event:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError | OSError):
        text = f"{type(error).__name__}: {text}"
    return Event(utc_now(), "error", checkpoint, circuit, "", text)


def utc_now() -> str:
    """ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
