"""Several probes in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.probes.base import (
    NO_VALUE,
    Effect,
    Probe,
    ProbeBatch,
    ProbeContext,
    Split,
)
from circuitkeep.probes.build import build_probe
from circuitkeep.probes.rows import check_request


@dataclass(frozen=True)
class Mixture(Probe):
    """Rows of several probes, interleaved so that every stretch of rows holds each by its share.

    A role must be labelled by one of the probes at least; in the rows of the others it has no
    target. Distractors and corrupted rows are there if all probes make them.

    Attributes:
        probes: The probes, or the mappings that `build_probe` reads.
        shares: Positive weights, one per probe; equal if not given.
    """

    probes: Sequence[Probe | Mapping[str, Any]]
    shares: Sequence[int | float] | None = None

    def __post_init__(self) -> None:
        if not self.probes:
            raise ValueError("Mixture needs at least one probe")
        members = tuple(p if isinstance(p, Probe) else build_probe(p) for p in self.probes)
        shares = (1.0,) * len(members) if self.shares is None else tuple(map(float, self.shares))
        if len(shares) != len(members) or not all(share > 0 for share in shares):
            raise ValueError(
                f"Mixture needs one positive share per probe ({len(members)}), got {list(shares)}"
            )
        object.__setattr__(self, "probes", members)
        object.__setattr__(self, "shares", shares)

    @property
    def members(self) -> tuple[Probe, ...]:
        """The probes, built."""
        return tuple(probe for probe in self.probes if isinstance(probe, Probe))

    @property
    def labels(self) -> tuple[str, ...]:
        """Every role that a member labels."""
        return tuple(dict.fromkeys(label for probe in self.members for label in probe.labels))

    @property
    def variables(self) -> tuple[str, ...]:
        """Every variable that a member knows."""
        return tuple(dict.fromkeys(name for probe in self.members for name in probe.variables))

    @property
    def behaviours(self) -> tuple[str, ...]:
        """What the answers of all members allow."""
        first, *others = self.members
        return tuple(b for b in first.behaviours if all(b in probe.behaviours for probe in others))

    @property
    def effects(self) -> Mapping[str, Effect]:
        """What the members say; of two that disagree about a role, the first."""
        found: dict[str, Effect] = {}
        for probe in self.members:
            found = {**probe.effects, **found}
        return found

    def at_length(self, length: int) -> Mixture:
        """See `Probe.at_length`, of every member."""
        return replace(self, probes=[probe.at_length(length) for probe in self.members])

    def batch(self, context: ProbeContext, split: Split, rows: int, seed: int) -> ProbeBatch:
        """See `Probe.batch`.

        Raises:
            ValueError: If a member cannot make its rows, or `rows` are too few to hold each.
        """
        check_request(split, rows)
        owners = self._owners(rows)
        counts = owners.bincount(minlength=len(self.members)).tolist()
        if 0 in counts:
            raise ValueError(
                f"{rows} rows are too few for a mixture with shares {list(self.shares or ())}; "
                "ask for more rows, or sample fewer probes"
            )
        parts = [
            probe.batch(context, split, count, seed)
            for probe, count in zip(self.members, counts, strict=True)
        ]
        # A stable sort lists the rows of member 0, then 1, ...; its inverse puts them back.
        return concatenate(parts, self.labels).select(owners.argsort(stable=True).argsort())

    def _owners(self, rows: int) -> Int[Tensor, " row"]:
        """For each row, the member that is furthest behind its share."""
        shares = torch.tensor(self.shares, dtype=torch.float64)
        shares = shares / shares.sum()
        given = torch.zeros_like(shares)
        owners = torch.zeros(rows, dtype=torch.long)
        for row in range(rows):
            owners[row] = (shares * (row + 1) - given).argmax()
            given[owners[row]] += 1
        return owners


def concatenate(parts: Sequence[ProbeBatch], labels: Sequence[str]) -> ProbeBatch:
    """The rows of `parts` one after another, padded to one width.

    Distractors and corrupted rows are kept if all parts have them; a role of `labels` that a
    part does not label has no target in its rows, a variable that it does not know no value.
    """
    width = max(part.tokens.shape[1] for part in parts)
    parts = [_widen(part, width) for part in parts]
    starts = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    distractors = [part.distractor for part in parts if part.distractor is not None]
    corrupted = [part.corrupted for part in parts if part.corrupted is not None]
    return ProbeBatch(
        tokens=torch.cat([part.tokens for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        targets={
            role: torch.cat([part.targets.get(role, _no_target(part)) for part in parts])
            for role in labels
        },
        answer_row=torch.cat(
            [part.answer_row + start for part, start in zip(parts, [0, *starts[:-1]], strict=True)]
        ),
        answer_position=torch.cat([part.answer_position for part in parts]),
        answer=torch.cat([part.answer for part in parts]),
        distractor=torch.cat(distractors) if len(distractors) == len(parts) else None,
        corrupted=concatenate(corrupted, ()) if len(corrupted) == len(parts) else None,
        family=_families(parts),
        variables={
            name: torch.cat([part.variables.get(name, _no_value(part)) for part in parts])
            for name in dict.fromkeys(name for part in parts for name in part.variables)
        },
    )


def _families(parts: Sequence[ProbeBatch]) -> Int[Tensor, " batch"]:
    """Each part's families under numbers of their own; a part without is one family."""
    found, first = [], 0
    for part in parts:
        own = torch.zeros(len(part), dtype=torch.long) if part.family is None else part.family
        found.append(own + first)
        first += int(own.max()) + 1
    return torch.cat(found)


def _widen(part: ProbeBatch, width: int) -> ProbeBatch:
    extra = width - part.tokens.shape[1]
    pad = torch.nn.functional.pad
    return replace(
        part,
        tokens=pad(part.tokens, (0, extra)),
        mask=pad(part.mask, (0, extra)),
        targets={role: pad(t, (0, extra, 0, extra)) for role, t in part.targets.items()},
        variables={n: pad(v, (0, extra), value=NO_VALUE) for n, v in part.variables.items()},
    )


def _no_target(part: ProbeBatch) -> Bool[Tensor, "batch query key"]:
    return torch.zeros(*part.tokens.shape, part.tokens.shape[1], dtype=torch.bool)


def _no_value(part: ProbeBatch) -> Int[Tensor, "batch pos"]:
    return torch.full_like(part.tokens, NO_VALUE)
