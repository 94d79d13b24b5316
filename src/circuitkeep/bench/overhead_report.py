"""What the suite ``overhead`` found, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from circuitkeep.bench.race import Spread, spread
from circuitkeep.bench.suites import Findings

PLAIN = "plain"


@dataclass(frozen=True)
class Cost:
    """What the steps of one contender came to.

    Attributes:
        about: What it does.
        seconds: Per step, the mean of each round.
        cpu_seconds: The same in time of the processor, which other processes do not lengthen.
        flops: Of one step, floating-point operations of matrix products and convolutions.
        peak_bytes: The most memory that tensors took during a step, weights and all.
        claim: See `Guarded`; None for rivals.
        every_n: See `Guarded`.
    """

    about: str
    seconds: Sequence[float]
    cpu_seconds: Sequence[float]
    flops: int
    peak_bytes: int
    claim: float | None = None
    every_n: int = 1


@dataclass(frozen=True)
class OverheadFindings(Findings):
    """The costs of all contenders, the plain step's first.

    Attributes:
        costs: Contender -> what its steps came to.
        work: Counts of what a step consists of.
        repeats: Rounds.
        machine: What it ran on.
    """

    costs: Mapping[str, Cost]
    work: Mapping[str, int]
    repeats: int
    machine: Mapping[str, str | int]

    def ratio(self, name: str) -> Spread:
        """How many times as long as a plain step, in the same round; on average over all steps."""
        cost, plain = self.costs[name], self.costs[PLAIN]
        return _ratio(cost.seconds, plain.seconds, cost.every_n)

    def cpu_ratio(self, name: str) -> Spread:
        """The same in time of the processor."""
        cost, plain = self.costs[name], self.costs[PLAIN]
        return _ratio(cost.cpu_seconds, plain.cpu_seconds, cost.every_n)

    def floor(self, name: str) -> float:
        """Operations that are added, as a share of a plain step's: the least time to expect."""
        cost = self.costs[name]
        return (cost.flops / self.costs[PLAIN].flops - 1) / cost.every_n

    def memory(self, name: str) -> float:
        """Peak memory, as a multiple of a plain step's."""
        return self.costs[name].peak_bytes / self.costs[PLAIN].peak_bytes

    def shown(self) -> list[RenderableType]:
        """See `Findings.shown`."""
        work = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.work.items())
        table = Table(title=f"\nA training step: {work}", title_justify="left", box=None)
        table.add_column("", no_wrap=True)
        for name in ("seconds", "times plain", "CPU time", "floor", "mem", "claim"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, cost in self.costs.items():
            seconds = f"{spread(cost.seconds).median:.3g}"
            if name == PLAIN:
                table.add_row(name, seconds, "", "", "", f"{cost.peak_bytes / 2**20:.0f} MiB", "")
                continue
            median, least, most = self.ratio(name)
            claim = ""
            if cost.claim is not None:
                claim = f"≤{cost.claim:g} {'held' if median <= cost.claim else 'missed'}"
            table.add_row(
                name,
                seconds,
                f"{median:.3f} [{least:.2f}, {most:.2f}]",
                f"{self.cpu_ratio(name).median:.3f}",
                f"{1 + self.floor(name):.3f}",
                f"{self.memory(name):.2f}",
                claim,
            )
        notes = [
            f"Median of {self.repeats} rounds [least, most]; ratios are taken within a round. "
            "Seconds and mem are those of a step in which the penalty is due; times plain and "
            "floor are averages over all steps; CPU time is the same of the processor's time, "
            "which other processes do not lengthen. Floor: operations of matrix products, times "
            "plain. Mem: the most memory that tensors take, times plain.",
            *(f"{name}: {cost.about}." for name, cost in self.costs.items()),
            ", ".join(f"{key} {value}" for key, value in self.machine.items()),
        ]
        return [table, "", *notes]

    def content(self) -> dict[str, Any]:
        """See `Findings.content`."""
        plain = self.costs[PLAIN]
        return {
            "machine": dict(self.machine),
            "work": dict(self.work),
            "plain": {
                "seconds": list(plain.seconds),
                "cpu_seconds": list(plain.cpu_seconds),
                "flops": plain.flops,
                "peak_bytes": plain.peak_bytes,
            },
            "contenders": [
                {
                    "name": name,
                    "about": cost.about,
                    "seconds": list(cost.seconds),
                    "cpu_seconds": list(cost.cpu_seconds),
                    "times_plain": self.ratio(name)._asdict(),
                    "cpu_times_plain": self.cpu_ratio(name)._asdict(),
                    "flops": cost.flops,
                    "floor": 1 + self.floor(name),
                    "peak_bytes": cost.peak_bytes,
                    "memory_times_plain": self.memory(name),
                    "every_n": cost.every_n,
                    "claim": cost.claim,
                    "claim_holds": None
                    if cost.claim is None
                    else self.ratio(name).median <= cost.claim,
                }
                for name, cost in self.costs.items()
                if name != PLAIN
            ],
        }


def _ratio(its: Sequence[float], plain: Sequence[float], every_n: int) -> Spread:
    return spread([1 + (one / other - 1) / every_n for one, other in zip(its, plain, strict=True)])
