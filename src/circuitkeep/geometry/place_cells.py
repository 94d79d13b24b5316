"""Place cells among a transcoder's features: how a dictionary tiles the values of a variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import Manifold
from circuitkeep.functional.tuning import covered, place_cells
from circuitkeep.manifolds import check_variables
from circuitkeep.probes import NO_VALUE, ProbeBatch, classes_of
from circuitkeep.transcoders import CrossLayerTranscoder
from circuitkeep.transcoders.replacement import check_fits

_CHUNK = 16


@dataclass(frozen=True)
class Tiling:
    """How the features of one layer stand for the values of a variable.

    Attributes:
        manifold: Name.
        layer: Whose MLP's features they are: the one that reads the manifold.
        features: How many there are.
        active: How many are ever active at these positions.
        cells: Numbers of the place cells, by preferred value.
        preferred: Their preferred values.
        widths: Of the values at which each has half of its height, in the variable's unit.
        covered: Share of the classes within at least one of these.
        widening: Rank correlation of preferred value and width, over the cells whose stretch ends
            within the range; NaN for fewer than three, or where one side never changes.
    """

    manifold: str
    layer: int
    features: int
    active: int
    cells: tuple[int, ...]
    preferred: tuple[float, ...]
    widths: tuple[float, ...]
    covered: float
    widening: float


@torch.no_grad()
def tiling(
    backend: Backend, transcoder: CrossLayerTranscoder, batch: ProbeBatch, manifold: Manifold
) -> Tiling:
    """Find the place cells of the layer after a manifold's (of the last, for the last).

    Even and odd prompts are the two halves in which a place cell must be tuned alike.

    Raises:
        CircuitError: If the batch does not know the variable.
        ValueError: If the transcoder does not fit the model, or a class has no sample in one half.
    """
    check_variables(batch, [manifold])
    check_fits(backend, transcoder)
    layer = min(manifold.layer + 1, backend.n_layers - 1)
    halves = [_curves(backend, transcoder, batch, manifold, layer, half) for half in (0, 1)]
    fields, chosen = place_cells(halves[0], halves[1])
    order = fields.preferred.argsort(stable=True)
    cells = order[chosen[order]]
    preferred = [manifold.value_of(int(fields.preferred[cell])) for cell in cells]
    widths = fields.width[cells].double() * manifold.step
    clear = fields.clear[cells]
    return Tiling(
        manifold=manifold.name,
        layer=layer,
        features=len(chosen),
        active=int((halves[0] + halves[1] > 0).any(1).sum()),
        cells=tuple(cells.tolist()),
        preferred=tuple(preferred),
        widths=tuple(widths.tolist()),
        covered=covered(fields, chosen, manifold.classes),
        widening=_widening(torch.tensor(preferred)[clear], widths[clear]),
    )


def _widening(preferred: Float[Tensor, " cell"], widths: Float[Tensor, " cell"]) -> float:
    if len(widths) < 3 or preferred.eq(preferred[0]).all() or widths.eq(widths[0]).all():
        return float("nan")
    found: Any = stats.spearmanr(preferred.numpy(), widths.numpy())
    return float(found.statistic)


def _curves(
    backend: Backend,
    transcoder: CrossLayerTranscoder,
    batch: ProbeBatch,
    manifold: Manifold,
    layer: int,
    half: int,
) -> Float[Tensor, "feature class"]:
    """Mean activations over every second prompt."""
    total: Tensor | float = 0.0
    counts = torch.zeros(manifold.classes, dtype=torch.float64)
    for rows in torch.arange(half, len(batch), 2).split(_CHUNK):
        part = batch.select(rows).to(backend.device)
        with probe_mode(backend.model), backend.capture(Sites(mlp_in=(layer,))) as captured:
            backend.forward(part.tokens)
        classes = classes_of(manifold, part.variables[manifold.variable])
        here = (classes != NO_VALUE) & part.mask
        active = transcoder.encode_layer(layer, captured.mlp_ins[layer][here].float())
        known = torch.nn.functional.one_hot(classes[here], manifold.classes).double()
        total = total + (active.double().T @ known).cpu()
        counts += known.sum(0).cpu()
    if not bool(counts.all()) or not isinstance(total, Tensor):
        value = manifold.says(int(counts.argmin()))
        raise ValueError(
            f"manifold {manifold.name!r}: {manifold.variable} is never {value} in one half of "
            "these prompts; give more rows, fewer values or a larger step"
        )
    return total / counts
