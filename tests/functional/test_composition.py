import warnings

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.functional.composition import (
    Baseline,
    composition_score,
    composition_z,
    full_circuit_factors,
    full_circuit_score,
    head_composition,
    random_composition_baseline,
    reader_factors,
    rotated_composition_baseline,
)
from circuitkeep.functional.weights import (
    eigenvalue_score,
    factored_eigenvalues,
    factored_singular_values,
    top1_on_diagonal,
)

LAYERS, HEADS, D_MODEL, D_HEAD, TOKENS = 3, 2, 16, 4, 20
norm = torch.linalg.matrix_norm


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + 17 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


@pytest.fixture
def heads():
    """W_Q, W_K, W_V, W_O of three layers of two heads."""
    into = [draw(LAYERS, HEADS, D_MODEL, D_HEAD, seed=seed) for seed in range(3)]
    return *into, draw(LAYERS, HEADS, D_HEAD, D_MODEL, seed=3)


def naive_composition(heads, kind):
    scores = torch.full((LAYERS, HEADS, LAYERS, HEADS), torch.nan, dtype=torch.float64)
    for i in range(LAYERS):
        for h in range(HEADS):
            for j in range(i + 1, LAYERS):
                for g in range(HEADS):
                    w_q, w_k, w_v, w_o = (value[j, g] for value in heads)
                    reader = {"Q": w_q @ w_k.T, "K": w_k @ w_q.T, "V": w_v @ w_o}[kind]
                    writer = heads[2][i, h] @ heads[3][i, h]
                    scores[i, h, j, g] = norm(writer @ reader) / norm(writer) / norm(reader)
    return scores


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_equals_naive_loop(heads, kind, monkeypatch):
    expected = naive_composition(heads, kind)
    assert_close(head_composition(*heads, kind), expected, equal_nan=True)
    monkeypatch.setattr("circuitkeep.functional.composition._NUMBERS_AT_ONCE", 1)
    assert_close(head_composition(*heads, kind), expected, equal_nan=True)


def test_composition_by_hand():
    # The writer writes e0 and e1 at lengths 3 and 4; the reader reads e0 only.
    e = torch.eye(4)
    writer_a, writer_b = e[None, :, 2:], torch.stack([3 * e[0], 4 * e[1]])[None]
    reader_a, reader_b = e[None, :, :1], e[None, :1]
    score = composition_score(writer_a, writer_b, reader_a, reader_b)
    assert score.item() == pytest.approx(3 / 5)
    # One that reads what is not written, and one that is zero.
    assert composition_score(writer_a, writer_b, e[None, :, 3:], reader_b).item() == 0
    assert composition_score(writer_a, writer_b, 0 * reader_a, reader_b).item() == 0


def test_composition_is_of_the_heads_not_of_their_factors(heads):
    w_q, w_k, w_v, w_o = heads
    gauge = draw(LAYERS, HEADS, D_HEAD, D_HEAD) + 3 * torch.eye(D_HEAD)
    inverse = torch.linalg.inv(gauge)
    other = (w_q @ gauge, w_k @ inverse.mT, w_v @ gauge, inverse @ w_o)
    for kind in ("Q", "K", "V"):
        one = head_composition(*heads, kind)
        assert_close(head_composition(*other, kind), one, equal_nan=True)


def test_an_unknown_kind(heads):
    with pytest.raises(ValueError, match="kind='O': a head reads as Q, K or V"):
        reader_factors.__wrapped__(*heads, "O")


def test_gradients(heads):
    factors = [heads[2][0], heads[3][0], heads[0][1], heads[1][1].mT]
    factors = [value.contiguous().requires_grad_() for value in factors]
    assert torch.autograd.gradcheck(composition_score, factors)
    w_e, w_out = draw(TOKENS, D_MODEL).requires_grad_(), draw(D_MODEL, TOKENS).requires_grad_()
    inputs = [w_e, *factors, w_out]
    assert torch.autograd.gradcheck(full_circuit_score, inputs, fast_mode=True)


def test_the_gradient_where_nothing_composes_is_zero():
    e = torch.eye(4)
    factors = [e[None, :, :1], e[None, 1:2], e[None, :, 2:3], e[None, 3:]]
    factors = [value.clone().requires_grad_() for value in factors]
    composition_score(*factors).sum().backward()
    for factor in factors:
        assert factor.grad is not None
        assert factor.grad.abs().max() == 0


@pytest.fixture(scope="module")
def bridges(tiny_model, as_bridge):
    """A bridge around GPT-2 and an attention-only model of TransformerLens' own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge
    sizes = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 3, "n_ctx": 24, "d_vocab": 36}
    native = TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, attn_only=True))
    return {
        "gpt2": as_bridge(tiny_model("gpt2", n_layer=3)),
        "llama": as_bridge(tiny_model("llama", num_hidden_layers=3)),
        "native": native.eval(),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "native"])
def test_composition_agrees_with_transformer_lens(bridges, name):
    from circuitkeep.capture.weights import head_weights

    bridge = bridges[name]
    weights = head_weights(bridge)
    for kind in ("Q", "K", "V"):
        theirs = bridge.all_composition_scores(kind).scores
        scores = head_composition(weights.W_Q, weights.W_K, weights.W_V, weights.W_O, kind)
        assert_close(scores.nan_to_num(0), theirs, atol=1e-5, rtol=0)
        assert (theirs[scores.isnan()] == 0).all()


def test_the_mean_square_of_unrelated_matrices():
    for ranks in ((4, 4), (8, 2)):
        mean, sd = random_composition_baseline(32, *ranks, draws=400)
        assert (mean**2 + sd**2).item() == pytest.approx(1 / 32, rel=0.05)
        values = torch.linspace(1, 2, ranks[0])[None], torch.ones(1, ranks[1])
        mean, sd = rotated_composition_baseline(*values, 32, draws=400)
        assert (mean**2 + sd**2).item() == pytest.approx(1 / 32, rel=0.05)


def test_rotated_baseline_equals_naive_rotations():
    s, t = torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.5]])
    generator = torch.Generator().manual_seed(1)
    scores = []
    for _ in range(2000):
        u, v = (torch.linalg.qr(torch.randn(6, 6, generator=generator))[0] for _ in range(2))
        writer = u[:, :2] @ s[0].diag() @ u[:2]
        reader = v[:, :3] @ t[0].diag() @ v[:3]
        scores.append(norm(writer @ reader) / norm(writer) / norm(reader))
    mean, sd = rotated_composition_baseline(s, t, 6, draws=2000)
    assert mean.item() == pytest.approx(torch.stack(scores).mean().item(), rel=0.03)
    assert sd.item() == pytest.approx(torch.stack(scores).std().item(), rel=0.08)


def spectra(heads, kind):
    a, b = reader_factors(*heads, kind)
    writers = factored_singular_values(heads[2], heads[3]).flatten(0, 1)
    return writers, factored_singular_values(a, b).flatten(0, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_random_heads_are_within_three_sd_and_a_planted_pair_is_not(seed, kind):
    shape = (2, 4, 64)
    w_q, w_k, w_v = (draw(*shape, 8, seed=10 * seed + i) for i in range(3))
    w_o = draw(2, 4, 8, 64, seed=10 * seed + 4)
    heads = [w_q, w_k, w_v, w_o]

    def both_z():
        score = head_composition(*heads, kind)[0, :, 1]
        rotated = rotated_composition_baseline(*spectra(heads, kind), 64)
        rotated = Baseline(*(x.view(2, 4, 2, 4)[0, :, 1] for x in rotated))
        yield composition_z(score, rotated)
        yield composition_z(score, random_composition_baseline(64, 8, 8))

    for z in both_z():
        assert z.abs().max() < 3.5  # the largest of 16
        assert (z.abs() < 3).float().mean() > 0.9
    # L1H3 reads what L0H2 writes.
    {"Q": w_q, "K": w_k, "V": w_v}[kind][1, 3] += 3 * w_o[0, 2].T
    for z in both_z():
        assert z[2, 3] > 10
        z[2, 3] = 0
        assert z.abs().max() < 4


def test_a_low_rank_head_has_a_wider_null():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    mean, sd = rotated_composition_baseline(values, values, 32)
    assert sd[1, 1] > 2 * sd[0, 0]
    assert mean[1, 1] < mean[0, 0], "the same mean square, spread wider"


def test_baselines_are_always_the_same_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other, third = (random_composition_baseline(16, 4, 4, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.mean, other.mean)
    assert not torch.equal(one.mean, third.mean)
    assert torch.equal(torch.rand(1), expected)


def test_impossible_baselines():
    with pytest.raises(ValueError, match="draws=1: a standard deviation needs two"):
        random_composition_baseline(16, 4, 4, draws=1)
    with pytest.raises(ValueError, match="5 singular values in a space of 4 dimensions"):
        rotated_composition_baseline(torch.ones(1, 5), torch.ones(1, 2), 4)


def test_a_zero_head_has_no_z():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    baseline = rotated_composition_baseline(zero, one, 8)
    assert baseline.mean.item() == baseline.sd.item() == 0
    assert composition_z(torch.zeros(1, 1), baseline).isnan().all()


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_full_circuits_equal_the_whole_matrices(heads, kind):
    w_e, w_u = draw(TOKENS, D_MODEL), draw(D_MODEL, TOKENS)
    w_out = w_u if kind == "V" else w_e.T
    first = [value[0] for value in heads]
    a, b = reader_factors(*(value[1] for value in heads), kind)
    pairs = (first[2][:, None], first[3][:, None], a[None], b[None])
    pairs = [value.expand(HEADS, HEADS, *value.shape[2:]) for value in pairs]
    scores = full_circuit_score(w_e, *pairs, w_out)
    left, right = full_circuit_factors(w_e, *pairs, w_out)
    assert_close(eigenvalue_score(factored_eigenvalues(left, right)), scores)
    for h in range(HEADS):
        for g in range(HEADS):
            w_q, w_k, w_v, w_o = (value[1, g] for value in heads)
            reader = {"Q": w_q @ w_k.T, "K": w_k @ w_q.T, "V": w_v @ w_o}[kind]
            whole = w_e @ heads[2][0, h] @ heads[3][0, h] @ reader @ w_out
            assert_close(left[h, g] @ right[h, g], whole)
            values = torch.linalg.eigvals(whole).tolist()
            expected = sum(v.real for v in values) / sum(abs(v) for v in values)
            assert scores[h, g].item() == pytest.approx(expected, abs=1e-6)


def test_the_induction_pair_of_a_wired_model(wired_model):
    from circuitkeep.capture.weights import head_weights, token_weights

    heads, tokens = head_weights(wired_model, fold_norm=True), token_weights(wired_model)
    weights = (heads.W_Q, heads.W_K, heads.W_V, heads.W_O)
    scores = head_composition(*weights, "K")
    found = scores[0, :, 1].clone()
    found[1, 2] = 0
    assert scores[0, 1, 1, 2] > 0.1
    assert found.abs().max() == 0
    z = composition_z(
        scores[0, :, 1],
        Baseline(
            *(
                x.view(2, 4, 2, 4)[0, :, 1]
                for x in rotated_composition_baseline(*spectra(weights, "K"), 80)
            )
        ),
    )
    assert z[1, 2] > 10
    a, b = reader_factors(*(value[1, 2] for value in weights), "K")
    pair = (tokens.W_E, weights[2][0, 1], weights[3][0, 1], a, b, tokens.W_E.T)
    assert full_circuit_score(*pair).item() == pytest.approx(1, abs=1e-5)
    # The query's token matches the token before the key, for every token.
    assert top1_on_diagonal(*full_circuit_factors(*pair)).item() == 1
