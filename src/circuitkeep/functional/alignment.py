r"""Whether a head matches the values of one variable with those of another, and how far apart.

A head's scores between the classes of a variable at the query and those of one at the key are a
matrix, :math:`S_{ij} = \langle \bar q_i, \bar k_j \rangle`. What is the same for all keys moves
no attention, and what is the same for all queries matches nothing: both are taken off. A head that
finds values near each other has a diagonal in the rest of it, shifted by its offset: how far the
key's value lies above the query's.

Source:
    Gurnee et al. 2025, "When Models Manipulate Manifolds", arXiv:2601.04480, on boundary heads.
    They look at cosines in the head's space; the inner products here are the same whatever the
    gauge inside the head, which cosines are not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Diagonal(NamedTuple):
    """The shifted diagonal that matrices come nearest to.

    Attributes:
        correlation: With it, from -1 to 1.
        offset: By how much the key's value lies above the query's there.
    """

    correlation: Float[Tensor, "*batch"]
    offset: Float[Tensor, "*batch"]


def double_centred(matrix: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query key"]:
    """A matrix without the means of its rows and of its columns."""
    matrix = matrix - matrix.mean(-1, keepdim=True)
    return matrix - matrix.mean(-2, keepdim=True)


def cosine_matrix(
    x: Float[Tensor, "point d"], y: Float[Tensor, "other d"]
) -> Float[Tensor, "point other"]:
    """Cosines between points, each set about its own centre; 0 for a point at the centre."""
    x, y = (torch.nn.functional.normalize(p - p.mean(0), dim=1) for p in (x, y))
    return x @ y.mT


def offsets_of(
    query_values: Float[Tensor, " query"], key_values: Float[Tensor, " key"]
) -> Float[Tensor, " offset"]:
    """The offsets at which at least half of the shorter side's values have a partner.

    In steps of the finer side's.
    """
    sides = query_values, key_values
    step = min(float(side.diff().min()) for side in sides)
    needed = min(float(side[-1] - side[0]) for side in sides) / 2
    low = float(key_values[0] - query_values[-1]) + needed
    high = float(key_values[-1] - query_values[0]) - needed
    first, last = -(-low // step), high // step
    return step * torch.arange(int(first), int(last) + 1, dtype=torch.float64)


def best_diagonal(
    scores: Float[Tensor, "*batch query key"],
    query_values: Float[Tensor, " query"],
    key_values: Float[Tensor, " key"],
    width: float | None = None,
    offsets: Float[Tensor, " offset"] | None = None,
) -> Diagonal:
    r"""Correlate scores with diagonals at every offset, and take the best.

    .. math:: T_{ij}(o) = \exp \frac{-(v_j - u_i - o)^2}{2 w^2}

    both double-centred.

    Args:
        scores: Need not be centred.
        query_values, key_values: :math:`u` and :math:`v`, ascending.
        width: :math:`w`, in the variables' unit; a tenth of the keys' range if None.
        offsets: Those of `offsets_of` if None; a single one asks about a known offset.

    Returns:
        Correlation 0 where the scores are all the same.
    """
    offsets = offsets_of(query_values, key_values) if offsets is None else offsets
    width = float(key_values[-1] - key_values[0]) / 10 if width is None else width
    apart = key_values.double()[None, :] - query_values.double()[:, None]
    wanted = double_centred((-0.5 * ((apart - offsets[:, None, None]) / width).square()).exp())
    wanted = torch.nn.functional.normalize(wanted.flatten(1), dim=1)
    centred = double_centred(scores.double()).flatten(-2)
    found = torch.nn.functional.normalize(centred, dim=-1) @ wanted.mT
    best = found.max(-1)
    return Diagonal(best.values, offsets[best.indices])


def shuffled_diagonals(
    scores: Float[Tensor, "query key"],
    query_values: Float[Tensor, " query"],
    key_values: Float[Tensor, " key"],
    draws: int = 100,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """`best_diagonal` of the same scores with the keys' classes in random orders.

    An easy null: it breaks the order of the classes, which any smooth manifold has. `random_scores`
    keep it.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(scores.shape[1], generator=generator) for _ in range(draws)]
    shuffled = torch.stack([scores[:, order] for order in orders])
    return best_diagonal(shuffled, query_values, key_values).correlation


class TurnedSums(NamedTuple):
    """Sums over samples of what is read times the turns of their positions.

    A rotary head's mean query is not a function of the mean of what it reads, but of these.

    Attributes:
        sums: Of coordinates along the principal axes of all that is read, times each entry of the
            turn that is not always 0.
        totals: Of these entries alone, which the bias is multiplied by.
        counts: Samples.
        rows, columns: Of the entries in the turn.
    """

    sums: Float[Tensor, "class k entry"]
    totals: Float[Tensor, "class entry"]
    counts: Float[Tensor, " class"]
    rows: Int[Tensor, " entry"]
    columns: Int[Tensor, " entry"]


class HeadSide(NamedTuple):
    """How a head reads on one side, but for the directions that it reads.

    Attributes:
        inner: The triangular factor of its matrix, with a positive diagonal; see `inner_factor`.
        bias: Added before the turn; None for none.
    """

    inner: Float[Tensor, "r r"]
    bias: Float[Tensor, " r"] | None


def turned_sums(
    sums: Float[Tensor, "class place d"],
    counts: Int[Tensor, "class place"],
    turns: Float[Tensor, "place r r"],
) -> TurnedSums:
    """What the mean queries or keys of any head are made of; see `TurnedSums`.

    Args:
        sums: Over the samples of each class and place of what the head reads.
        counts: How many those are.
        turns: Of each place: the identity at one place where nothing is turned.
    """
    flat = sums.double().flatten(0, 1)
    # Axes of the moments about 0, with signs fixed: coordinates are the same in any basis.
    axes = torch.linalg.eigh(flat.mT @ flat).eigenvectors.flip(1)
    own = flat @ axes
    largest = own.gather(0, own.abs().argmax(0, keepdim=True))
    own = (own * largest.sign()).view(sums.shape)
    rows, columns = (turns != 0).any(0).nonzero(as_tuple=True)
    entries = turns[:, rows, columns].double()
    return TurnedSums(
        torch.einsum("cpk,pn->ckn", own, entries),
        counts.double() @ entries,
        counts.sum(1).double(),
        rows,
        columns,
    )


def inner_factor(matrix: Float[Tensor, "d r"]) -> Float[Tensor, "r r"]:
    """The triangular factor, with a positive diagonal, that any turn of the stream leaves alone."""
    inner = torch.linalg.qr(matrix.double()).R
    return inner * torch.where(inner.diagonal() < 0, -1.0, 1.0)[:, None]


def means_through(
    turned: TurnedSums, frame: Float[Tensor, "k r"], side: HeadSide
) -> Float[Tensor, "class r"]:
    """Mean query or key of every class, of a head that reads the directions `frame`."""
    matrix = (frame @ side.inner.double())[:, turned.rows]
    found = torch.einsum("ckn,kn->cn", turned.sums, matrix)
    if side.bias is not None:
        found = found + turned.totals * side.bias.double()[turned.rows]
    means = found.new_zeros(len(found), len(side.inner)).index_add_(1, turned.columns, found)
    return means / turned.counts[:, None]


def random_scores(
    sides: tuple[TurnedSums, TurnedSums],
    head: tuple[HeadSide, HeadSide],
    draws: int,
    seed: int = 0,
) -> Float[Tensor, "draw query key"]:
    """Scores of random heads: as a given one, but for the directions that they read.

    Those are turned at random, for query and key apart: singular values, biases and rotary turns
    stay. The same seed gives the same numbers in any basis of the stream.

    Args:
        sides: What is read at the query and at the key.
        head: How the given head reads it.
        draws: How many random heads.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        query, key = (
            means_through(turned, _frame(turned.sums.shape[1], len(side.inner), generator), side)
            for turned, side in zip(sides, head, strict=True)
        )
        found.append(query @ key.mT)
    return torch.stack(found)


def _frame(d: int, r: int, generator: torch.Generator) -> Float[Tensor, "d r"]:
    """Orthonormal directions, drawn evenly from all."""
    return torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64)).Q


def random_images(
    gram: Float[Tensor, "point point"],
    stretch: Float[Tensor, " r"],
    d_model: int,
    draws: int,
    seed: int = 0,
) -> tuple[Float[Tensor, "point k"], Float[Tensor, "draw point k"]]:
    """Points, and what random maps of the given singular values make of them.

    Returns:
        Both in coordinates of their own, in which only their inner products mean something.
    """
    generator = torch.Generator().manual_seed(seed)
    points = _principal_coordinates(gram, d_model)
    width = max(points.shape[1], len(stretch))
    images = torch.zeros(draws, len(points), width, dtype=torch.float64)
    for number in range(draws):
        frame = _frame(d_model, len(stretch), generator)[: points.shape[1]]
        images[number, :, : len(stretch)] = (points @ frame) * stretch.double()
    padded = torch.nn.functional.pad(points, (0, width - points.shape[1]))
    return padded, images


def _principal_coordinates(
    gram: Float[Tensor, "point point"], d_model: int
) -> Float[Tensor, "point k"]:
    """Points with these inner products, along their principal components; signs are fixed."""
    values, vectors = torch.linalg.eigh(gram.double())
    kept = values.flip(0)[:d_model].clamp(min=0).sqrt()
    vectors = vectors.flip(1)[:, :d_model]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign() * kept
