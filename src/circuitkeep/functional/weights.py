"""Heads as products of thin matrices: norms, spectra, and what they do to tokens.

A head's circuits have rank ``d_head`` in a space of ``d_model`` or ``vocab`` dimensions. Every
function takes the two factors ``A B`` and works on matrices of their rank: nothing of size vocab x
vocab is ever made. Products are summed in float64, because sums of squares of small matrices cancel
where the large ones do not; results come back in the factors' dtype, fp32 at least.

Raw W_Q or W_V mean nothing by themselves: ``W_Q M, W_K M^-T`` and ``W_V M, M^-1 W_O`` are the same
head. All that is computed here is the same for them too.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

_TOKENS_AT_ONCE = 8192


def factored_norm(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r e"]
) -> Float[Tensor, "*batch"]:
    r"""Frobenius norm of ``a b`` from two Gram matrices of the rank.

    .. math:: \lVert A B \rVert_F = \sqrt{\sum_{ij} (A^\top A)_{ij} (B B^\top)_{ij}}

    Returns:
        Non-negative; differentiable, with gradient 0 where the norm is 0.
    """
    wide, (a, b) = in_float64(a, b)
    return safe_sqrt((gram(a) * gram(b.mT)).sum((-2, -1))).to(wide)


def product_drift(
    a: Float[Tensor, "*head d r"],
    b: Float[Tensor, "*head r e"],
    kept_a: Float[Tensor, "*head d r"],
    kept_b: Float[Tensor, "*head r e"],
    turns: Float[Tensor, "*head turn r r"] | None = None,
) -> Float[Tensor, "*head"]:
    r"""Squared Frobenius distance of ``a b`` from ``kept_a kept_b``, over the square of the latter.

    .. math:: AB - CD = [A - C, \; C] \begin{bmatrix} B \\ B - D \end{bmatrix}

    so that Gram matrices of twice the rank do, and nothing cancels near the reference. With `turns`
    both squares are means over :math:`A R_t B`.

    Returns:
        0 with gradient 0 where both factors are the same; 1 where ``a b`` is 0. Where what was kept
        is 0, the distance itself.
    """
    wide, (a, b, c, d) = in_float64(a, b, kept_a, kept_b)
    left = _mean_turned(gram(torch.cat([a - c, c], -1)), turns)
    distance = (left * gram(torch.cat([b, b - d], -2).mT)).sum((-2, -1))
    square = (_mean_turned(gram(c), turns) * gram(d.mT)).sum((-2, -1))
    return (distance / square.masked_fill(square == 0, 1)).to(wide)


def _mean_turned(
    blocks: Float[Tensor, "*head n n"], turns: Float[Tensor, "*head turn r r"] | None
) -> Float[Tensor, "*head n n"]:
    """The mean of ``R^T G R`` over the turns, for each r x r block ``G``."""
    if turns is None:
        return blocks
    turns = turns.double()
    rank = turns.shape[-1]
    parts = blocks.unflatten(-1, (-1, rank)).unflatten(-3, (-1, rank))
    turned = torch.einsum("...osi,...asbt,...otj->...aibj", turns, parts, turns)
    return turned.flatten(-2).flatten(-3, -2) / turns.shape[-3]


def factored_singular_values(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r e"]
) -> Float[Tensor, "*batch value"]:
    """Singular values of ``a b`` that can differ from zero, largest first.

    Returns:
        ``min(d, r, e)`` values; differentiable where they are distinct and both factors have full
        rank.
    """
    wide, (a, b) = in_float64(a, b)
    left, right = torch.linalg.qr(a)[1], torch.linalg.qr(b.mT)[1]
    return torch.linalg.svdvals(left @ right.mT).to(wide)


def factored_eigenvalues(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch r d"]
) -> Complex[Tensor, "*batch r"]:
    """Eigenvalues of ``a b`` that can differ from zero: those of the small matrix ``b a``.

    Returns:
        ``r`` complex values in no order; differentiable where they are distinct.
    """
    wide, (a, b) = in_float64(a, b)
    return torch.linalg.eigvals(b @ a).to(_complex(wide))


def eigenvalue_score(eigenvalues: Complex[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    r"""How far a map sends directions to themselves rather than to their opposites.

    .. math:: \frac{\sum_i \lambda_i}{\sum_i |\lambda_i|}

    The eigenvalues of a real matrix come in conjugate pairs, so the sum is real. Many small
    eigenvalues of one sign count as much as one large one.

    Returns:
        In [-1, 1]: 1 if every eigenvalue is positive, -1 if every one is negative, near 0 for a
        random matrix. 0 for the zero map, which does neither.

    Source:
        Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
        transformer-circuits.pub/2021/framework, on detecting copying by eigenvalues.
    """
    size = eigenvalues.abs().sum(-1)
    return eigenvalues.real.sum(-1) / size.masked_fill(size == 0, 1)


def copying_score(
    W_E: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "*head d_model d_head"],
    W_O: Float[Tensor, "*head d_head d_model"],
    W_U: Float[Tensor, "d_model token"],
) -> Float[Tensor, "*head"]:
    r"""Whether attending to a token raises that token's own logit: `eigenvalue_score` of the full
    OV circuit.

    .. math:: W_E W_V W_O W_U \in \mathbb{R}^{token \times token}

    Its eigenvalues are those of :math:`W_O (W_U W_E) W_V`, of the size of a head. Fold the norms
    (`circuitkeep.capture.weights`, ``fold_norm=True``) to leave out only what depends on the data.

    Args:
        W_E: Rows of the embedding; all tokens, or a sample.
        W_U: Columns of the unembedding, of the same tokens.

    Returns:
        Per head, in [-1, 1]; positive for copying heads, negative for heads that suppress what
        they attend to.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, on detecting copying.
    """
    wide, (value, out) = in_float64(W_V, W_O)
    small = out @ (sum_over_tokens(W_U.mT, W_E) @ value)
    return eigenvalue_score(torch.linalg.eigvals(small)).to(wide)


def matching_score(
    W_E: Float[Tensor, "token d_model"],
    W_Q: Float[Tensor, "*head d_model d_head"],
    W_K: Float[Tensor, "*head d_model d_head"],
) -> Float[Tensor, "*head"]:
    r"""Whether a token attends to its own occurrences: `eigenvalue_score` of the full QK circuit.

    .. math:: W_E W_Q W_K^\top W_E^\top \in \mathbb{R}^{token \times token}

    Args:
        W_E: Rows of the embedding; all tokens, or a sample.
        W_K: For a rotary model, W_Q and W_K as `HeadWeights.qk` turns them for one offset.

    Returns:
        Per head, in [-1, 1]; positive where equal tokens attend to each other (duplicate-token
        heads), negative where they avoid each other.

    Source:
        Elhage et al. 2021, transformer-circuits.pub/2021/framework, who use it for the composed QK
        circuit of induction heads: `circuitkeep.functional.composition.full_circuit_score`.
    """
    wide, (query, key) = in_float64(W_Q, W_K)
    small = key.mT @ (sum_over_tokens(W_E, W_E) @ query)
    return eigenvalue_score(torch.linalg.eigvals(small)).to(wide)


def top1_on_diagonal(a: Float[Tensor, "token r"], b: Float[Tensor, "r token"]) -> Float[Tensor, ""]:
    r"""Share of rows of ``a b`` whose largest entry is their own token's.

    .. math:: \frac{1}{n} \sum_i [\arg\max_j (AB)_{ij} = i]

    What `eigenvalue_score` sums up, read off the matrix itself, a few rows at a time.

    Returns:
        In [0, 1]; 1 / token by chance. Not differentiable.

    Source:
        McDougall, ARENA 3.0, chapter 1.2, the accuracy of the full OV circuit.
    """
    wide, (a, b) = in_float64(a.detach(), b.detach())
    rows = torch.arange(a.shape[0], device=a.device)
    hits = [
        ((a[chunk] @ b).argmax(1) == chunk).sum()
        for chunk in rows.split(max(1, _TOKENS_AT_ONCE**2 // (64 * b.shape[1])))
    ]
    return (torch.stack(hits).sum() / a.shape[0]).to(wide)


def sum_over_tokens(
    left: Float[Tensor, "token d"], right: Float[Tensor, "token e"]
) -> Float[Tensor, "d e"]:
    """``left^T right`` in float64, some tokens at a time, so that no second vocabulary is held."""
    parts = zip(left.split(_TOKENS_AT_ONCE), right.split(_TOKENS_AT_ONCE), strict=True)
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for one, other in parts:
        total = total + one.double().mT @ other.double()
    return total


def safe_sqrt(square: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Square root with gradient 0, not infinity, at 0; what rounding made negative is 0."""
    positive = square > 0
    return square.where(positive, 1).sqrt() * positive


def gram(a: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch r r"]:
    """``a^T a``."""
    return a.mT @ a


def in_float64(*factors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The result's dtype, fp32 at least, and the factors in float64, which autocast spares."""
    wide = torch.float32
    for factor in factors:
        wide = torch.promote_types(wide, factor.dtype)
    return wide, [factor.double() for factor in factors]


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64
