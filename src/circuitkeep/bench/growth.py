"""The suite ``growth``: what the guard adds as heads, prompts and the model grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from circuitkeep.bench.overhead import OverheadSuite
from circuitkeep.bench.overhead_report import PLAIN, OverheadFindings
from circuitkeep.bench.race import spread
from circuitkeep.bench.suites import LEAST_REPEATS, Findings, Progress, Suite
from circuitkeep.circuits import Head

GUARD = "guard"
POOL_ROWS = 4
"""Rows to draw from: what a step takes does not depend on it, and 512 long rows fill a memory."""
AXES = ("guarded heads", "tokens per training row", "tokens per probe row", "layers")


@dataclass(frozen=True, kw_only=True)
class GrowthSuite(Suite):
    """The guard's defaults beside a plain step, with one thing varied at a time.

    Attributes:
        guarded: Numbers of guarded heads, taken from the last layer down; the first is the base.
        lengths: Tokens per training row; the first is the base.
        probe_lengths: Tokens per probe row; the first is the base.
        sizes: Numbers of layers; the width is ``d_model`` for the first, the base, and grows with
            them.
        rows: Of a training batch.
        heads: Per layer.
        d_model: Of the base.
        vocab: Tokens in the vocabulary.
        precision: Of Lightning's trainer: ``32-true`` or ``bf16-mixed``.
        seed: Of weights and tokens.
        repeats: Rounds; in each of them both steps are taken once, in turn.
        device: ``cpu``, ``cuda`` or ``cuda:NUMBER``.

    Raises:
        ValueError: If a number is out of range, or there are not that many heads.
    """

    guarded: Sequence[int] = (3, 1, 12, 48)
    lengths: Sequence[int] = (256, 128, 512, 1024)
    probe_lengths: Sequence[int] = (32, 128, 1024, 4096)
    sizes: Sequence[int] = (6, 3, 12)
    rows: int = 2
    heads: int = 8
    d_model: int = 384
    vocab: int = 8192
    precision: str = "32-true"
    seed: int = 0
    repeats: int = LEAST_REPEATS
    device: str = "cpu"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Sequence) and not isinstance(value, str) and not value:
                raise ValueError(f"bench.{one.name} is empty")
        list(self._points())  # refuses what does not fit before anything is run

    def run(self, progress: Progress) -> Findings:
        """See `Suite.run`.

        Raises:
            ValueError: If the device is not there.
            DisagreementError: If the guard changes the task's loss.
        """
        points = list(self._points())
        found = []
        for number, (axis, value, suite) in enumerate(points):
            costs = suite.run(_share(progress, f"{axis} {value}", number, len(points)))
            assert isinstance(costs, OverheadFindings)
            found.append(Point(axis, value, costs))
        return GrowthFindings(found, self._base())

    def _base(self) -> list[int]:
        return [values[0] for values in self._varied()]

    def _varied(self) -> tuple[Sequence[int], ...]:
        return self.guarded, self.lengths, self.probe_lengths, self.sizes

    def _points(self) -> Iterator[tuple[str, int, OverheadSuite]]:
        varied, base = self._varied(), self._base()
        yield "base", base[0], self._suite(*base)
        for place, axis in enumerate(AXES):
            for value in varied[place][1:]:
                changed = [value if at == place else one for at, one in enumerate(base)]
                yield axis, value, self._suite(*changed)

    def _suite(self, guarded: int, length: int, probe_length: int, layers: int) -> OverheadSuite:
        if not 1 <= guarded <= layers * self.heads:
            raise ValueError(
                f"bench.guarded={guarded}: a model of {layers} layers has {layers * self.heads} "
                "heads"
            )
        order = [Head(at, i) for i in range(self.heads) for at in reversed(range(layers))]
        return OverheadSuite(
            rows=self.rows,
            length=length,
            contenders=(GUARD,),
            heads_guarded=[str(head) for head in order[:guarded]],
            probe_length=probe_length,
            pool_rows=POOL_ROWS,
            precision=self.precision,
            layers=layers,
            heads=self.heads,
            d_model=self.d_model * layers // self.sizes[0] // self.heads * self.heads,
            vocab=self.vocab,
            seed=self.seed,
            repeats=self.repeats,
            device=self.device,
        )


def _share(progress: Progress, at: str, number: int, of: int) -> Progress:
    """Tells of one suite as a part of several."""

    def tell(name: str, done: int, total: int, /) -> None:
        progress(f"{at}: {name}", number * total + done, of * total)

    return tell


@dataclass(frozen=True)
class Point:
    """One setting: which of `AXES` was changed (or ``base``), to what, and what was found."""

    axis: str
    value: int
    costs: OverheadFindings

    def content(self) -> Mapping[str, Any]:
        """All figures, in plain types."""
        plain, guard = self.costs.costs[PLAIN], self.costs.costs[GUARD]
        pairs = zip(guard.seconds, plain.seconds, strict=True)
        added = spread([(g - p) / guard.every_n for g, p in pairs])
        return {
            "axis": self.axis,
            "value": self.value,
            "plain_s": spread(plain.seconds).median,
            "added_s": added._asdict(),
            "times_plain": self.costs.ratio(GUARD)._asdict(),
            "cpu_times_plain": self.costs.cpu_ratio(GUARD)._asdict(),
            "floor": 1 + self.costs.floor(GUARD),
            "plain_flops": plain.flops,
            "added_flops": (guard.flops - plain.flops) / guard.every_n,
            "plain_peak_bytes": plain.peak_bytes,
            "added_peak_bytes": guard.peak_bytes - plain.peak_bytes,
        }


@dataclass(frozen=True)
class GrowthFindings(Findings):
    """All points, the base first, and what the base has on each of `AXES`."""

    points: Sequence[Point]
    bases: Sequence[int]

    def shown(self) -> list[RenderableType]:
        """See `Findings.shown`."""
        table = Table(title="\nA training step with the guard", title_justify="left", box=None)
        table.add_column("", no_wrap=True)
        for name in ("plain s", "added ms", "times plain", "CPU time", "floor", "added MiB"):
            table.add_column(name, justify="right", no_wrap=True)
        for point in self.points:
            one = point.content()
            ratio = one["times_plain"]
            name = "base" if point.axis == "base" else f"{point.axis}: {point.value}"
            table.add_row(
                name,
                f"{one['plain_s']:.3g}",
                f"{1000 * one['added_s']['median']:.3g}",
                f"{ratio['median']:.3f} [{ratio['least']:.2f}, {ratio['most']:.2f}]",
                f"{one['cpu_times_plain']['median']:.3f}",
                f"{one['floor']:.3f}",
                f"{one['added_peak_bytes'] / 2**20:.1f}",
            )
        first = self.points[0].costs
        notes = [
            f"Median of {first.repeats} rounds [least, most]; times are compared within a round. "
            "CPU time is the same of the processor's time, which other processes do not lengthen. "
            "Floor: operations of matrix products, times plain. Added MiB: by how much the most "
            "memory that tensors take grows.",
            ", ".join(f"{key} {value}" for key, value in first.machine.items()),
        ]
        return [table, "", *notes]

    def content(self) -> dict[str, Any]:
        """See `Findings.content`."""
        first = self.points[0].costs
        return {
            "machine": dict(first.machine),
            "base": dict(first.work),
            "bases": list(self.bases),
            "points": [dict(point.content()) for point in self.points],
        }
