"""What the residual stream is at the values of a variable, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import CircuitError, Manifold
from circuitkeep.probes import NO_VALUE, ProbeBatch, classes_of

_CHUNK = 32


@dataclass(frozen=True)
class Samples:
    """The residual stream at every position where the variable has a value; on the CPU, float32.

    Attributes:
        manifold: Which.
        values: The stream.
        labels: Class of each, from 0.
        row: Which prompt it is of.
        position: Where in the prompt.
    """

    manifold: Manifold
    values: Float[Tensor, "sample d"]
    labels: Int[Tensor, " sample"]
    row: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]


@dataclass(frozen=True)
class ManifoldRows:
    """Sums of the residual stream by value and prompt, from which any means are made; on the CPU.

    Attributes:
        manifold: Which.
        sums: Over the positions of a prompt that have the class; float64.
        counts: How many there are.
        squares: Sum of the squared norms of all of them.
    """

    manifold: Manifold
    sums: Float[Tensor, "row class d"]
    counts: Int[Tensor, "row class"]
    squares: float

    def means(self, rows: Int[Tensor, " drawn"] | None = None) -> Float[Tensor, "class d"]:
        """The manifold: the mean of every class, over some rows (with repetition) or all.

        Raises:
            CircuitError: If a class has no sample in these rows.
        """
        times = torch.ones(len(self.counts), dtype=torch.float64)
        if rows is not None:
            times = rows.bincount(minlength=len(self.counts)).double()
        counts = times @ self.counts.double()
        self._check(counts)
        return torch.einsum("r,rcd->cd", times, self.sums) / counts[:, None]

    @property
    def explained(self) -> float:
        """Share of the samples' variance that is between the classes, from 0 to 1."""
        counts = self.counts.sum(0)
        centre = self.sums.sum((0, 1)) / counts.sum()
        between = (counts * (self.means() - centre).square().sum(1)).sum()
        whole = self.squares - counts.sum() * centre.square().sum()
        return (between / whole).item()

    def _check(self, counts: Float[Tensor, " class"]) -> None:
        if bool((counts > 0).all()):
            return
        manifold = self.manifold
        value = manifold.says(int(counts.argmin()))
        raise CircuitError(
            f"manifold {manifold.name!r}: {manifold.variable} is never {value} on these "
            f"{len(self.counts)} prompts; give more rows, fewer values or a larger step",
            *("manifolds", manifold.name, "values"),
        )


def frame_of(points: Float[Tensor, "point d"], dimensions: int) -> Float[Tensor, "d k"]:
    """Orthonormal principal directions of points, the widest first."""
    centred = (points - points.mean(0)).double()
    return torch.linalg.svd(centred, full_matrices=False).Vh[:dimensions].mT.to(points)


@torch.no_grad()
def manifold_rows(
    backend: Backend, batch: ProbeBatch, manifolds: Sequence[Manifold]
) -> dict[str, ManifoldRows]:
    """Measure manifolds in one pass over the rows, by name.

    Raises:
        CircuitError: If the batch does not know a variable, or a class has no sample in any row.
        ValueError: If a layer is outside the model.
    """
    if not manifolds:
        return {}
    sums: dict[str, list[Tensor]] = {one.name: [] for one in manifolds}
    counts: dict[str, list[Tensor]] = {one.name: [] for one in manifolds}
    squares = dict.fromkeys(sums, 0.0)
    for manifold, classes, stream in _passes(backend, batch, manifolds):
        name = manifold.name
        known = torch.nn.functional.one_hot(classes + 1, manifold.classes + 1)[..., 1:]
        counts[name].append(known.sum(1).cpu())
        wide = stream.double()
        sums[name].append(torch.einsum("bpc,bpd->bcd", known.to(wide), wide).cpu())
        squares[name] += wide[classes != NO_VALUE].square().sum().item()
    found = {
        one.name: ManifoldRows(
            one, torch.cat(sums[one.name]), torch.cat(counts[one.name]), squares[one.name]
        )
        for one in manifolds
    }
    for one in found.values():
        one.means()  # refuses classes without samples
    return found


@torch.no_grad()
def manifold_samples(
    backend: Backend, batch: ProbeBatch, manifolds: Sequence[Manifold]
) -> dict[str, Samples]:
    """The samples themselves, by name; see `manifold_rows`, which keeps much less.

    Raises:
        CircuitError: If the batch does not know a variable.
        ValueError: If a layer is outside the model.
    """
    parts: dict[str, list[tuple[Tensor, ...]]] = {one.name: [] for one in manifolds}
    rows_before = dict.fromkeys(parts, 0)
    for manifold, classes, stream in _passes(backend, batch, manifolds):
        row, position = (classes != NO_VALUE).nonzero(as_tuple=True)
        parts[manifold.name].append(
            (
                stream[row, position].float().cpu(),
                classes[row, position].cpu(),
                row.cpu() + rows_before[manifold.name],
                position.cpu(),
            )
        )
        rows_before[manifold.name] += len(classes)
    return {
        one.name: Samples(one, *(torch.cat(part) for part in zip(*parts[one.name], strict=True)))
        for one in manifolds
    }


def check_variables(batch: ProbeBatch, manifolds: Iterable[Manifold]) -> None:
    """Refuse manifolds of variables that the rows do not know.

    Raises:
        CircuitError: Naming the manifold.
    """
    for manifold in manifolds:
        if manifold.variable not in batch.variables:
            known = ", ".join(batch.variables) or "none"
            raise CircuitError(
                f"manifold {manifold.name!r}: the rows do not know {manifold.variable!r}, but "
                f"{known}; make them by `circuitkeep.probing.probe_rows`",
                *("manifolds", manifold.name, "variable"),
            )


def _passes(
    backend: Backend, batch: ProbeBatch, manifolds: Sequence[Manifold]
) -> Iterator[tuple[Manifold, Int[Tensor, "chunk pos"], Float[Tensor, "chunk pos d"]]]:
    check_variables(batch, manifolds)
    layers = tuple(sorted({one.layer for one in manifolds}))
    for rows in torch.arange(len(batch)).split(_CHUNK):
        part = batch.select(rows).to(backend.device)
        with probe_mode(backend.model), backend.capture(Sites(resid=layers)) as captured:
            backend.forward(part.tokens)
        for one in manifolds:
            classes = classes_of(one, part.variables[one.variable]).where(part.mask, NO_VALUE)
            yield one, classes, captured.resids[one.layer]
