"""The frozen result of a sweep; every renderer reads it and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitkeep.compare.paired import KINDS, Kept
from circuitkeep.compare.replicates import Estimate
from circuitkeep.compare.report import CircuitDescription, plain


@dataclass(frozen=True)
class GroupResult:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What was swept beside the seed.
        unregularized: Whether nothing held the circuit.
        against: Label of the unregularized runs it is compared with; empty if there are none.
        seeds: Of the trainings.
        price: The metric `SweepReport.price`, over seeds.
        price_difference: Of that to the unregularized runs, paired by seed.
        price_p_holm: P-value of that being 0, Holm-corrected over the groups.
        capability: The other losses, by metric, over seeds.
        circuits: Circuit -> kind -> what was kept.
        front: The circuits for which no other group keeps as much behaviour at a lower price.
    """

    label: str
    unregularized: bool
    against: str
    seeds: tuple[int, ...]
    price: Estimate
    price_difference: Estimate | None
    price_p_holm: float
    capability: Mapping[str, Estimate]
    circuits: Mapping[str, Mapping[str, Kept]]
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """One run: its final metrics, and what it kept on the held-out rows.

    Attributes:
        retention: Circuit -> kind -> value / base value, over prompts.
    """

    name: str
    label: str
    seed: int
    metrics: Mapping[str, float]
    retention: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class SweepReport:
    """All finished runs of a sweep.

    Attributes:
        price: The metric that a guard may cost, lower is better.
        unfinished: Names of runs that are not in the figures.
    """

    folder: str
    price: str
    groups: tuple[GroupResult, ...]
    runs: tuple[RunResult, ...]
    circuits: Mapping[str, CircuitDescription]
    unfinished: tuple[str, ...]
    created: str
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def priced(self) -> bool:
        """Whether every group has unregularized runs to tell its price against."""
        return all(group.unregularized or group.price_difference for group in self.groups)

    def to_json(self) -> str:
        """JSON with keys as the attributes; NaN becomes null."""
        return json.dumps(plain(self), indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """One line per run: its metrics, and its retention on the held-out rows."""
        lines = []
        for run in self.runs:
            line: dict[str, Any] = {"run": run.name, "setting": run.label, "seed": run.seed}
            for circuit, kept in run.retention.items():
                line |= {f"held_out/{circuit}/{kind}_retention": kept[kind] for kind in KINDS}
            lines.append(line | dict(run.metrics))
        columns = list(dict.fromkeys(key for line in lines for key in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()
