"""How much of what one head writes another head reads, from the weights alone.

A pair of heads composes through a product of two low-rank matrices: what the writer puts into the
residual stream, ``W_V W_O``, and what the reader does with it as query (``W_Q W_K^T``), as key
(``W_K W_Q^T``) or as value (``W_V W_O``). A score means nothing without its null: matrices that
have nothing to do with each other score ``1 / sqrt(d_model)``, not 0.

The residual stream's norms lie between writer and reader. Fold them into the reader
(`circuitkeep.capture.weights`, ``fold_norm=True``) to count what the reader can read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.functional.weights import (
    eigenvalue_score,
    factored_norm,
    gram,
    in_float64,
    safe_sqrt,
    sum_over_tokens,
)

Kind = Literal["Q", "K", "V"]
_NUMBERS_AT_ONCE = 2**23


class Baseline(NamedTuple):
    """Scores of pairs that have nothing to do with each other: mean and standard deviation."""

    mean: Float[Tensor, "*pair"]
    sd: Float[Tensor, "*pair"]


def composition_score(
    writer_a: Float[Tensor, "writer d_model r"],
    writer_b: Float[Tensor, "writer r d_model"],
    reader_a: Float[Tensor, "reader d_model s"],
    reader_b: Float[Tensor, "reader s d_model"],
) -> Float[Tensor, "writer reader"]:
    r"""How strongly each reader reads what each writer writes.

    .. math:: \frac{\lVert W_w W_r \rVert_F}{\lVert W_w \rVert_F \lVert W_r \rVert_F},
              \quad W_w = A_w B_w, \; W_r = A_r B_r

    With :math:`C = B_w A_r`, the square of the numerator is the sum of
    :math:`(A_w^\top A_w C) \circ (C B_r B_r^\top)`: per pair, matrices of the heads' ranks.

    Returns:
        In [0, 1]; 1 / sqrt(d_model) in the root mean square for unrelated matrices. 0 where a
        head is zero, which neither writes nor reads; the gradient is 0 there.

    Source:
        Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
        transformer-circuits.pub/2021/framework, on measuring composition.
    """
    norms = factored_norm(writer_a, writer_b)[:, None] * factored_norm(reader_a, reader_b)[None]
    wide, (wa, wb, ra, rb) = in_float64(writer_a, writer_b, reader_a, reader_b)
    left, right = gram(wa), gram(rb.mT)
    per_writer = ra.shape[0] * wb.shape[1] * ra.shape[2]
    chunks = torch.arange(wa.shape[0]).split(max(1, _NUMBERS_AT_ONCE // max(1, per_writer)))
    squares = []
    for chunk in chunks:
        writers = slice(int(chunk[0]), int(chunk[-1]) + 1)
        middle = torch.einsum("wid,rdj->wrij", wb[writers], ra)
        squares.append(((left[writers, None] @ middle) * (middle @ right)).sum((-2, -1)))
    product = safe_sqrt(torch.cat(squares)).to(wide)
    return product / norms.masked_fill(norms == 0, 1)


def head_composition(
    W_Q: Float[Tensor, "layer head d_model d_head"],
    W_K: Float[Tensor, "layer head d_model d_head"],
    W_V: Float[Tensor, "layer head d_model d_value"],
    W_O: Float[Tensor, "layer head d_value d_model"],
    kind: Kind,
) -> Float[Tensor, "layer head layer head"]:
    """`composition_score` of all pairs of heads, axes ``writer_layer writer_head reader_layer
    reader_head``.

    Args:
        kind: What the reader uses the writer's output for: its query, key or value.

    Returns:
        In [0, 1]; NaN where the writer's layer does not come before the reader's, so that no
        composition is possible.

    Raises:
        ValueError: If `kind` is not Q, K or V.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework; the pairs as in
        TransformerLens' ``all_composition_scores``, which has zeros where this has NaN.
    """
    reader_a, reader_b = reader_factors(W_Q, W_K, W_V, W_O, kind)
    layers, heads = W_Q.shape[:2]
    rows = []
    for layer in range(layers):
        later = slice(layer + 1, layers)
        scores = composition_score(
            W_V[layer], W_O[layer], reader_a[later].flatten(0, 1), reader_b[later].flatten(0, 1)
        )
        scores = scores.unflatten(1, (layers - layer - 1, heads))
        nothing = scores.new_full((heads, layer + 1, heads), torch.nan)
        rows.append(torch.cat([nothing, scores], 1))
    return torch.stack(rows)


def reader_factors(
    W_Q: Float[Tensor, "*head d_model d_head"],
    W_K: Float[Tensor, "*head d_model d_head"],
    W_V: Float[Tensor, "*head d_model d_value"],
    W_O: Float[Tensor, "*head d_value d_model"],
    kind: Kind,
) -> tuple[Float[Tensor, "*head d_model r"], Float[Tensor, "*head r d_model"]]:
    """The matrix by which a head reads the residual stream as `kind`, in two factors.

    Returns:
        ``W_Q, W_K^T`` for Q, ``W_K, W_Q^T`` for K, ``W_V, W_O`` for V; the first factor meets
        what the writer wrote.

    Raises:
        ValueError: If `kind` is not Q, K or V.
    """
    if kind == "Q":
        return W_Q, W_K.mT
    if kind == "K":
        return W_K, W_Q.mT
    if kind == "V":
        return W_V, W_O
    raise ValueError(f"kind={kind!r}: a head reads as Q, K or V")


def random_composition_baseline(
    d_model: int, writer_rank: int, reader_rank: int, draws: int = 200, seed: int = 0
) -> Baseline:
    r"""`composition_score` of Gaussian factors of the same shapes.

    The mean of the squared score is exactly :math:`1 / d_{model}`, whatever the ranks; the
    standard deviation falls as they grow.

    Returns:
        Two scalars; always the same for the same arguments.

    Raises:
        ValueError: If there are fewer than two draws.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, who subtract the expected score
        of random matrices of the same shapes.
    """
    generator = _generator(draws, seed)
    scores = []
    for _ in range(draws):
        shapes = [(d_model, writer_rank), (writer_rank, d_model)]
        shapes += [(d_model, reader_rank), (reader_rank, d_model)]
        factors = (torch.randn(1, *shape, generator=generator) for shape in shapes)
        scores.append(composition_score(*factors)[0, 0])
    return Baseline(torch.stack(scores).mean(), torch.stack(scores).std())


def rotated_composition_baseline(
    writer_values: Float[Tensor, "writer r"],
    reader_values: Float[Tensor, "reader s"],
    d_model: int,
    draws: int = 200,
    seed: int = 0,
) -> Baseline:
    r"""`composition_score` of the same heads turned at random in the residual stream.

    Writer and reader keep their singular values :math:`s, t`; only how the writer's right singular
    vectors lie to the reader's left ones is drawn, uniformly (a corner :math:`O` of a Haar-random
    orthogonal matrix):

    .. math:: \sqrt{\frac{\sum_{ij} s_i^2 O_{ij}^2 t_j^2}{\sum_i s_i^2 \sum_j t_j^2}}

    The null to prefer: heads of low effective rank score more widely than Gaussian ones, and this
    one knows. All pairs are scored on the same draws.

    Args:
        writer_values: `circuitkeep.functional.weights.factored_singular_values` of each writer.
        reader_values: The same of each reader.

    Returns:
        Mean and standard deviation per pair; 0 and 0 for a head that is zero.

    Raises:
        ValueError: If there are fewer than two draws, or more singular values than dimensions.
    """
    ranks = writer_values.shape[1], reader_values.shape[1]
    if max(ranks) > d_model:
        raise ValueError(f"{max(ranks)} singular values in a space of {d_model} dimensions")
    generator = _generator(draws, seed)
    wide, (writer, reader) = in_float64(writer_values, reader_values)
    writer, reader = writer.square(), reader.square()
    norms = writer.sum(1)[:, None] * reader.sum(1)[None]
    scores = []
    for _ in range(draws):
        gaussian = torch.randn(d_model, ranks[1], generator=generator, dtype=torch.float64)
        # Signs are not made uniform, as only squares are used.
        corner = torch.linalg.qr(gaussian)[0][: ranks[0]].to(writer.device)
        square = writer @ corner.square() @ reader.mT / norms.masked_fill(norms == 0, 1)
        scores.append(square.sqrt())
    drawn = torch.stack(scores)
    return Baseline(drawn.mean(0).to(wide), drawn.std(0).to(wide))


def composition_z(score: Float[Tensor, "*pair"], baseline: Baseline) -> Float[Tensor, "*pair"]:
    """Standard deviations by which a score lies above what unrelated matrices score.

    Returns:
        NaN where the baseline does not vary, that is, for a head that is zero.
    """
    sd = baseline.sd.to(score)
    return (score - baseline.mean.to(score)) / sd.masked_fill(sd == 0, torch.nan)


def full_circuit_factors(
    W_E: Float[Tensor, "token d_model"],
    writer_a: Float[Tensor, "*pair d_model r"],
    writer_b: Float[Tensor, "*pair r d_model"],
    reader_a: Float[Tensor, "*pair d_model s"],
    reader_b: Float[Tensor, "*pair s d_model"],
    W_out: Float[Tensor, "d_model token_out"],
) -> tuple[Float[Tensor, "*pair token s"], Float[Tensor, "*pair s token_out"]]:
    r"""The circuit of a pair of heads between tokens, :math:`W_E W_w W_r W_{out}`, in two factors.

    Row: the token the writer attends to. Column, for Q-composition, the key's token; for
    K-composition, the query's; for V-composition, the token whose logit moves.

    Args:
        W_E: Rows of the embedding: for more than one pair, a sample of tokens.
        reader_a: See `reader_factors`.
        W_out: ``W_E^T`` for Q and K, ``W_U`` for V; a sample of tokens again.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, on virtual attention heads
        and on the QK circuit of induction heads.
    """
    wide, (wa, wb, ra, rb) = in_float64(writer_a, writer_b, reader_a, reader_b)
    left = W_E.double() @ (wa @ (wb @ ra))
    return left.to(wide), (rb @ W_out.double()).to(wide)


def full_circuit_score(
    W_E: Float[Tensor, "token d_model"],
    writer_a: Float[Tensor, "*pair d_model r"],
    writer_b: Float[Tensor, "*pair r d_model"],
    reader_a: Float[Tensor, "*pair d_model s"],
    reader_b: Float[Tensor, "*pair s d_model"],
    W_out: Float[Tensor, "d_model token"],
) -> Float[Tensor, "*pair"]:
    r"""`eigenvalue_score` of the circuit of a pair of heads between tokens.

    .. math:: \lambda(W_E W_w W_r W_{out}) =
              \lambda\big((B_w A_r) (B_r \, W_{out} W_E \, A_w)\big)

    An induction pair's is near 1 under K-composition: the reader's query token matches the token
    that the writer moved into the key. Leading axes are pairs: index or broadcast them, e.g. to the
    pairs whose `composition_z` is large.

    Args:
        W_E: All tokens, or a sample.
        reader_a: See `reader_factors`.
        W_out: ``W_E^T`` for Q and K, ``W_U`` for V, of the same tokens.

    Returns:
        In [-1, 1]; see `eigenvalue_score`.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, on induction heads.
    """
    wide, (wa, wb, ra, rb) = in_float64(writer_a, writer_b, reader_a, reader_b)
    tokens = sum_over_tokens(W_out.mT, W_E)
    small = (wb @ ra) @ (rb @ (tokens @ wa))
    return eigenvalue_score(torch.linalg.eigvals(small)).to(wide)


def _generator(draws: int, seed: int) -> torch.Generator:
    if draws < 2:
        raise ValueError(f"draws={draws}: a standard deviation needs two draws or more")
    return torch.Generator().manual_seed(seed)
