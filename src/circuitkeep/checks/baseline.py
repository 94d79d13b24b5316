"""What a circuit's checks measured once, pinned in a reviewed file beside the circuit's own."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from circuitkeep.files import replacing

SUFFIX = ".baseline.json"


@dataclass(frozen=True)
class Pinned:
    """One check, as it was measured.

    Attributes:
        value: Mean over the reseeded measurements.
        low, high: 95% interval of the plan's own rows.
        seed_spread: Standard deviation of the value over reseeded measurements of so many rows.
        null: What is to be had without a circuit; see `circuitkeep.checks.null`.
        threshold: That is proposed.
        false_alarm: Chance that an unchanged model fails it on other rows, by that spread.
        detects: The smallest loss that fails it with 90% power, as a share of the value.
    """

    value: float
    low: float
    high: float
    seed_spread: float
    null: float
    threshold: float
    false_alarm: float
    detects: float


@dataclass(frozen=True)
class Baseline:
    """The checks of a circuit in one model.

    Attributes:
        circuit: Its name.
        model: Fingerprint of the weights.
        rows: Per seed.
        seeds: In a measurement.
        reseeds: How often it was measured.
        missed: Chance that an unchanged model does not pass a check; that it even fails it is
            `Pinned.false_alarm`.
        tolerated: Share of a value that its threshold is below it, at least.
        checks: Name of the check -> what was measured.
    """

    circuit: str
    model: str
    rows: int
    seeds: int
    reseeds: int
    missed: float
    tolerated: float
    checks: Mapping[str, Pinned]

    @property
    def thresholds(self) -> dict[str, float]:
        """Name of a check -> its threshold."""
        return {name: one.threshold for name, one in self.checks.items()}


def baseline_path(circuit: str | os.PathLike[str]) -> Path:
    """``induction.circuit.yaml`` has ``induction.baseline.json`` beside it."""
    path = Path(circuit)
    stem = path.name
    for suffix in (".yaml", ".yml", ".circuit"):
        stem = stem.removesuffix(suffix)
    return path.with_name(stem + SUFFIX)


def read_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read a baseline.

    Raises:
        ValueError: If it is none, naming the file and what is wrong.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        checks = {
            str(name): Pinned(**{f.name: _number(one, f.name) for f in fields(Pinned)})
            for name, one in content["checks"].items()
        }
        settings: dict[str, Any] = {
            f.name: content[f.name] for f in fields(Baseline) if f.name != "checks"
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no baseline: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"{path} is no baseline: the key {error} is missing; `circuitkeep baseline update` "
            "writes it anew"
        ) from error
    return Baseline(**settings, checks=checks)


def write_baseline(baseline: Baseline, path: str | os.PathLike[str]) -> None:
    """Write it atomically, one figure a line, so that changes can be reviewed."""
    with replacing(path) as temporary:
        text = json.dumps(asdict(baseline), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _number(one: Mapping[str, Any], key: str) -> float:
    value = one[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key!r} must be a number, got {value!r}")
    return float(value)
