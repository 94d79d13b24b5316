import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.weights import (
    copying_score,
    eigenvalue_score,
    factored_eigenvalues,
    factored_norm,
    factored_singular_values,
    matching_score,
    top1_on_diagonal,
)

HEADS, D_MODEL, D_HEAD, TOKENS = 3, 12, 4, 20


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + 17 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


@pytest.fixture
def head():
    """W_E, W_Q, W_K, W_V, W_O, W_U."""
    into = [draw(HEADS, D_MODEL, D_HEAD, seed=seed) for seed in range(3)]
    out = draw(HEADS, D_HEAD, D_MODEL, seed=3)
    return draw(TOKENS, D_MODEL, seed=4), *into, out, draw(D_MODEL, TOKENS, seed=5)


def naive_score(matrix):
    """The eigenvalue score of a whole matrix, eigenvalue by eigenvalue."""
    values = torch.linalg.eigvals(matrix).tolist()
    return sum(value.real for value in values) / sum(abs(value) for value in values)


def test_norm_and_spectra_equal_those_of_the_product(head):
    _, _, _, a, b, _ = head
    whole = a @ b
    assert_close(factored_norm(a, b), torch.linalg.matrix_norm(whole))
    assert_close(factored_singular_values(a, b), torch.linalg.svdvals(whole)[..., :D_HEAD])
    for own, matrix in zip(factored_eigenvalues(a, b), whole, strict=True):
        every = sorted(torch.linalg.eigvals(matrix).tolist(), key=abs)
        assert all(abs(value) < 1e-9 for value in every[:-D_HEAD])
        for value in own.tolist():
            assert min(abs(value - other) for other in every) < 1e-9


def test_thin_products(head):
    a, b = draw(2, 5), draw(5, 3)
    assert_close(factored_norm(a, b), torch.linalg.matrix_norm(a @ b))
    assert_close(factored_singular_values(a, b), torch.linalg.svdvals(a @ b))


def test_norm_by_hand():
    # (3, 4)^T (1, 2): entries 3, 6, 4, 8.
    norm = factored_norm(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0]]))
    assert norm.item() == pytest.approx(math.sqrt(125))
    values = factored_singular_values(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0]]))
    assert values.tolist() == pytest.approx([math.sqrt(125)])


def test_eigenvalue_score_by_hand():
    assert eigenvalue_score(torch.tensor([3 + 4j, 3 - 4j, -2])).item() == pytest.approx(4 / 12)
    assert eigenvalue_score(torch.zeros(3, dtype=torch.complex64)).item() == 0


def test_copying_and_matching_equal_the_whole_matrices(head):
    w_e, w_q, w_k, w_v, w_o, w_u = head
    copying, matching = copying_score(w_e, w_v, w_o, w_u), matching_score(w_e, w_q, w_k)
    for index in range(HEADS):
        whole = w_e @ w_v[index] @ w_o[index] @ w_u
        assert copying[index].item() == pytest.approx(naive_score(whole), abs=1e-6)
        whole = w_e @ w_q[index] @ w_k[index].T @ w_e.T
        assert matching[index].item() == pytest.approx(naive_score(whole), abs=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_copying_head_scores_one_and_its_negative_minus_one(sign):
    # Tokens lie on axes of their own, and the head reads and writes the first four of them.
    w_e = torch.eye(D_MODEL)
    into = torch.eye(D_MODEL)[:, :D_HEAD][None]
    assert copying_score(w_e, into, sign * into.mT, w_e.T).tolist() == [sign]
    assert matching_score(w_e, into, sign * into).tolist() == [sign]
    assert copying_score(w_e, 0 * into, into.mT, w_e.T).tolist() == [0]


def test_random_heads_neither_copy_nor_suppress():
    w_v, w_o = draw(200, D_MODEL, 6), draw(200, 6, D_MODEL)
    score = copying_score(draw(64, D_MODEL), w_v, w_o, draw(D_MODEL, 64, seed=2))
    assert abs(score.mean().item()) < 3 * score.std().item() / math.sqrt(200)


def test_scores_are_of_the_head_not_of_its_factors(head):
    w_e, w_q, w_k, w_v, w_o, w_u = head
    gauge = draw(HEADS, D_HEAD, D_HEAD) + 3 * torch.eye(D_HEAD)
    inverse = torch.linalg.inv(gauge)
    for one, other in (
        (factored_norm(w_v, w_o), factored_norm(w_v @ gauge, inverse @ w_o)),
        (
            factored_singular_values(w_v, w_o),
            factored_singular_values(w_v @ gauge, inverse @ w_o),
        ),
        (copying_score(w_e, w_v, w_o, w_u), copying_score(w_e, w_v @ gauge, inverse @ w_o, w_u)),
        (matching_score(w_e, w_q, w_k), matching_score(w_e, w_q @ gauge, w_k @ inverse.mT)),
    ):
        assert_close(one, other)


def test_gradients(head):
    w_e, w_q, w_k, w_v, w_o, w_u = (value.requires_grad_() for value in head)
    check = torch.autograd.gradcheck
    assert check(factored_norm, (w_v, w_o))
    assert check(factored_singular_values, (w_v, w_o))
    assert check(lambda *x: factored_eigenvalues(*x).abs().sum(-1), (w_v, w_o))
    one = [w_e, w_v[:1].detach().requires_grad_(), w_o[:1].detach().requires_grad_(), w_u]
    assert check(copying_score, one, fast_mode=True)
    one = [w_e, w_q[:1].detach().requires_grad_(), w_k[:1].detach().requires_grad_()]
    assert check(matching_score, one, fast_mode=True)


def test_the_gradient_of_a_zero_head_is_zero():
    a = torch.zeros(D_MODEL, D_HEAD, requires_grad=True)
    b = draw(D_HEAD, D_MODEL, dtype=torch.float32)
    norm = factored_norm(a, b)
    norm.backward()
    assert norm.item() == 0
    assert a.grad is not None
    assert a.grad.abs().max() == 0


def test_more_tokens_than_are_taken_at_once(monkeypatch, head):
    w_e, _, _, w_v, w_o, w_u = head
    whole, top = copying_score(w_e, w_v, w_o, w_u), top1_on_diagonal(w_e @ w_v[0], w_o[0] @ w_u)
    monkeypatch.setattr("circuitkeep.functional.weights._TOKENS_AT_ONCE", 7)
    assert_close(copying_score(w_e, w_v, w_o, w_u), whole)
    assert_close(top1_on_diagonal(w_e @ w_v[0], w_o[0] @ w_u), top)


def test_top1_equals_naive_loop_and_by_hand(head):
    w_e, _, _, w_v, w_o, w_u = head
    whole = (w_e @ w_v[0] @ w_o[0] @ w_u).tolist()
    hits = sum(row.index(max(row)) == place for place, row in enumerate(whole))
    assert top1_on_diagonal(w_e @ w_v[0], w_o[0] @ w_u).item() == pytest.approx(hits / TOKENS)
    rows = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 4.0]])
    assert top1_on_diagonal(rows, torch.eye(3)).item() == pytest.approx(2 / 3)


def test_precision_and_autocast(head):
    w_e, _, _, w_v, w_o, w_u = (value.to(torch.bfloat16) for value in head)
    exact = copying_score(*(value.double() for value in (w_e, w_v, w_o, w_u)))
    with torch.autocast("cpu", torch.bfloat16):
        score = copying_score(w_e, w_v, w_o, w_u)
        norm = factored_norm(w_v, w_o)
    assert score.dtype == norm.dtype == torch.float32
    assert_close(score, exact.float())
    assert factored_eigenvalues(w_v, w_o).dtype == torch.complex64
