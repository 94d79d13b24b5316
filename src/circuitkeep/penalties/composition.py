"""Holding how much of what one head writes another reads."""

from __future__ import annotations

import re

from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.composition import Kind, composition_score, reader_factors
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty, check_choice, compared


class CompositionDrift(Penalty):
    r"""Squared relative change of the composition of pairs of guarded heads; no pass is run.

    .. math:: \frac{1}{P} \sum_{wr} \left( \frac{c_{wr}}{c^{ref}_{wr}} - 1 \right)^2, \quad
              c_{wr} = \frac{\lVert W_w W_r \rVert_F}
                            {\lVert W_w \rVert_F \lVert W_r \rVert_F}

    with :math:`W_w` the writer's OV circuit, and :math:`W_r` what the reader reads it by:
    :math:`W_Q W_K^\top` as "Q", its transpose as "K", W_V W_O as "V". Dimensionless: 1 when the
    reader no longer reads the writer at all.

    Args:
        kind: "Q", "K" or "V".
        writer: A guarded head by name, ``L0H2``; None for every one that stands below the reader.
        reader: The same; None for every one that stands above the writer.

    Invariant under the size of the circuits, and every change of basis within a head. The gradient
    reaches v and o of the writers, and q and k, or v and o, of the readers.

    Blind to biases, to the norms in between, to *which* directions are passed on so long as as much
    is, and to all other paths. In rotary models QK is taken at the relative offset 0.

    Raises:
        ValueError: If ``kind`` or a name is none of these; when first called, if the circuit has no
            such pair.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, for the score.
    """

    def __init__(
        self, kind: str = "K", writer: str | None = None, reader: str | None = None
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("Q", "K", "V"))
        self.kind: Kind = kind  # type: ignore[assignment]
        self.writer, self.reader = _head("writer", writer), _head("reader", reader)

    @property
    def needs(self) -> frozenset[Need]:
        """Weights."""
        return frozenset({"weights"})

    def forward(
        self, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, ""]:
        """The dimensionless drift."""
        names = ("W_Q", "W_K", "W_V", "W_O")
        sides = zip(*(compared(now, reference, name) for name in names), strict=True)
        writers, readers = zip(*self._pairs(now.heads), strict=True)
        kept, current = (self._scores(side)[list(writers), list(readers)] for side in sides)
        # A pair that did not compose has nothing to lose.
        ratio = current / kept.masked_fill(kept == 0, 1)
        return (ratio - (kept != 0).to(ratio)).square().mean()

    def _scores(self, side: tuple[Tensor, ...]) -> Float[Tensor, "writer reader"]:
        query, key, value = (matrix[:, :-1] for matrix in side[:3])  # without the biases
        read = reader_factors(query, key, value, side[3], self.kind)
        return composition_score(value, side[3], *read)

    def _pairs(self, heads: tuple[tuple[int, int], ...] | None) -> list[tuple[int, int]]:
        """Places of writer and reader among the guarded heads."""
        found = [
            (i, j)
            for i, writer in enumerate(heads or ())
            for j, reader in enumerate(heads or ())
            if writer[0] < reader[0]
            and self.writer in (None, writer)
            and self.reader in (None, reader)
        ]
        if not found:
            names = ", ".join(f"L{layer}H{index}" for layer, index in heads or ())
            raise ValueError(
                f"CompositionDrift: no pair of a writer {_name(self.writer)} and a reader "
                f"{_name(self.reader)} in a later layer among the guarded heads ({names})"
            )
        return found


def _head(option: str, name: str | None) -> tuple[int, int] | None:
    if name is None:
        return None
    match = re.fullmatch(r"L(\d+)H(\d+)", name)
    if match is None:
        raise ValueError(f"{option}={name!r}: name a head as L0H2, or leave it away for all")
    return int(match[1]), int(match[2])


def _name(head: tuple[int, int] | None) -> str:
    return "(any)" if head is None else f"L{head[0]}H{head[1]}"
