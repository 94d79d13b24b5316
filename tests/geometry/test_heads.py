"""Heads as transforms: what is planted is found, and no number depends on the basis."""

import math
from dataclasses import asdict

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.geometry import head_geometry

from .conftest import rotated

KINDS = ["gpt2", "llama", "qwen3", "neox", "mistral", "gemma2"]


def numbers(found):
    flat = []
    for head in found:
        values = asdict(head)
        flat += [*values["ov"].values(), *values["qk"].values(), values["translation"]]
        flat += [*values["singular_values"], *(abs(complex(*v)) for v in values["eigenvalues"])]
    return flat


def test_turning_the_stream_of_a_whole_model_changes_no_number(llama):
    tokens = torch.randint(0, llama.config.vocab_size, (2, 9))
    other = rotated(llama)
    with torch.no_grad():
        assert torch.allclose(llama(tokens).logits, other(tokens).logits, atol=1e-4)
    before, after = (numbers(head_geometry(attach(model))) for model in (llama, other))
    assert after == pytest.approx(before, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_is_described(kind, tiny_model):
    backend = attach(tiny_model(kind))
    found = head_geometry(backend)
    assert len(found) == backend.n_layers * backend.n_heads
    for head in found:
        assert len(head.singular_values) == backend.d_head
        for own in (head.ov, head.qk):
            assert 1 <= own.effective_rank <= backend.d_head + 1e-3
            assert 0 <= own.rotation <= own.projection + 1e-6 <= 1 + 1e-5
            assert -1 <= own.eigenvalue_score <= 1
            assert 0 <= own.turn <= math.pi
            assert 0 <= own.overlap_angle <= math.pi / 2


def planted(model, matrix):
    """L0H1 of a Llama with this OV map."""
    size = model.config.head_dim
    rows = slice(size, 2 * size)
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    group = slice(1 // groups * size, (1 // groups + 1) * size)
    left = torch.linalg.svd(matrix)
    rank = size
    with torch.no_grad():
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[group] = (left.U[:, :rank] * left.S[:rank]).T
        attention.o_proj.weight[:, rows] = left.Vh[:rank].T
    return next(h for h in head_geometry(attach(model)) if str(h.head) == "L0H1")


def orthonormal(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(draws).Q


def test_a_planted_copy_a_planted_inversion_and_a_planted_turn(llama):
    width, size = llama.config.hidden_size, llama.config.head_dim
    frame = orthonormal(width, size, 0)
    copying = planted(llama, 2 * frame @ frame.T).ov
    assert copying.projection == pytest.approx(0, abs=1e-9)
    assert copying.gain == pytest.approx(2)
    assert copying.effective_rank == pytest.approx(size)
    assert copying.eigenvalue_score == pytest.approx(1)
    assert copying.turn == pytest.approx(0, abs=1e-5)
    inverting = planted(llama, -2 * frame @ frame.T).ov
    assert inverting.gain == pytest.approx(-2)
    assert inverting.eigenvalue_angle == pytest.approx(math.pi)
    angle = 0.7
    turn = torch.zeros(size, size, dtype=torch.float64)
    for first in range(0, size, 2):
        turn[first, first] = turn[first + 1, first + 1] = math.cos(angle)
        turn[first, first + 1], turn[first + 1, first] = math.sin(angle), -math.sin(angle)
    turning = planted(llama, frame @ turn @ frame.T).ov
    assert turning.rotation == pytest.approx(0, abs=1e-9)
    assert turning.turn == pytest.approx(angle, abs=1e-5)
    assert turning.eigenvalue_angle == pytest.approx(angle, abs=1e-5)
    assert turning.overlap_angle == pytest.approx(0, abs=1e-5)


def test_a_planted_translation(tiny_model):
    model = tiny_model("gpt2")
    attention = model.transformer.h[0].attn
    width = model.config.n_embd
    with torch.no_grad():
        attention.c_attn.bias.zero_()
        model.transformer.h[0].ln_1.bias.zero_()
        attention.c_attn.bias[2 * width] = 3.0  # the first entry of the first head's value
    found = head_geometry(attach(model))
    expected = 3 * attention.c_proj.weight[0].norm().item()
    assert found[0].translation == pytest.approx(expected, rel=1e-5)
    assert found[1].translation == 0
