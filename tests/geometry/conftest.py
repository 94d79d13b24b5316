"""A model in another basis of its stream, and one whose manifolds and heads are known."""

import copy
import math

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Manifold
from circuitkeep.probes import NO_VALUE, ProbeBatch

VALUES, SHIFT = 16, 5
"""Values that each of two variables has, and by how much one is shifted against the other."""
LETTERS = Manifold("letters", "letter", -1, (0, VALUES - 1))
NUMBERS = Manifold("numbers", "number", -1, (0, VALUES - 1))


def rotated(model, seed=0):
    """A Llama whose residual stream is turned; its norms have no gain."""
    model = copy.deepcopy(model).double()
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(width, width, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(draws).Q
    with torch.no_grad():
        inner = model.model
        inner.embed_tokens.weight.copy_(inner.embed_tokens.weight @ turn)
        if not model.config.tie_word_embeddings:
            model.lm_head.weight.copy_(model.lm_head.weight @ turn)
        for layer in inner.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                weight.copy_(weight @ turn)
            for name in ("gate_proj", "up_proj"):
                weight = getattr(layer.mlp, name).weight
                weight.copy_(weight @ turn)
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.copy_(turn.T @ weight)
    return model


@pytest.fixture
def llama(tiny_model):
    model = tiny_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
    return model.double()


def curve(values, shift=0.0):
    """Three harmonics, so that values near each other have the largest products."""
    phase = 2 * math.pi * (values[:, None] + shift) / (2 * VALUES) * torch.arange(1, 4)
    return torch.cat([phase.cos(), phase.sin()], 1)


def batch_of(rows=48, length=12, seed=0):
    """Rows of letters (tokens 0 to 15) and numbers (16 to 31), each with its value."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2 * VALUES, (rows, length), generator=generator)
    nothing = torch.empty(0, dtype=torch.long)
    return ProbeBatch(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        {},
        nothing,
        nothing,
        nothing,
        variables={
            "letter": tokens.where(tokens < VALUES, NO_VALUE),
            "number": (tokens - VALUES).where(tokens >= VALUES, NO_VALUE),
            "position": torch.arange(length).expand_as(tokens),
        },
    )


@pytest.fixture
def planted(tiny_model):
    """A GPT-2 whose L0H1 twists numbers onto letters, and copies letters to where L1H2 looks.

    Letters lie on a curve in entries 0 to 5 of the stream and, negative, 12 to 17, so that no norm
    moves them; numbers likewise from 6 and from 18. The query of L0H1 is the letter's curve, its
    key that of the number less 5; it writes the letter's curve, twice as large, to the entries from
    24. There L1H2 reads its query. All other heads are random, but those of layer 0 write nothing,
    nor does its MLP.
    """
    model = tiny_model("gpt2").double()
    width, size = model.config.n_embd, model.config.n_embd // model.config.n_head
    values = torch.arange(VALUES).double()
    # Turning a curve by some values is a map of its coordinates.
    back = torch.linalg.lstsq(curve(values), curve(values, -SHIFT)).solution
    first, second = (block.attn for block in model.transformer.h)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        embedding = model.transformer.wte.weight.zero_()
        for start, at in ((0, 0), (VALUES, 6)):
            embedding[start : start + VALUES, at : at + 6] = curve(values)
            embedding[start : start + VALUES, at + 12 : at + 18] = -curve(values)
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1.0)
            block.ln_1.bias.zero_()
            block.attn.c_attn.bias.zero_()
        model.transformer.h[0].mlp.c_proj.weight.zero_()
        model.transformer.h[0].mlp.c_proj.bias.zero_()
        eye = torch.eye(6).double()
        query, key, value = (part + size for part in (0, width, 2 * width))
        first.c_attn.weight[:, query : query + size] = 0
        first.c_attn.weight[:, key : key + size] = 0
        first.c_attn.weight[:, value : value + size] = 0
        first.c_attn.weight[0:6, query : query + 6] = eye
        first.c_attn.weight[6:12, key : key + 6] = back
        first.c_attn.weight[0:6, value : value + 6] = eye
        first.c_proj.weight.zero_()
        first.c_proj.bias.zero_()
        first.c_proj.weight[size : size + 6, 24:30] = 2 * eye
        second.c_attn.weight[:, 2 * size : 3 * size] = 0
        second.c_attn.weight[24:30, 2 * size : 2 * size + 6] = eye
    return attach(model)
