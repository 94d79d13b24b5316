"""Heads as transforms: planted changes of their maps are found, whatever the gauge."""

import copy
import math

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head
from circuitkeep.manifolds.head_drift import HeadMap, head_drift, head_transforms

HEADS = (Head(0, 1), Head(1, 3))
SIZE = 8


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama")


def drift(base, now, heads=HEADS):
    return head_drift(*(head_transforms(attach(model), heads) for model in (base, now)))


def changed(model, change):
    model = copy.deepcopy(model)
    with torch.no_grad():
        change(model.model.layers[0].self_attn)
    return model


def test_the_same_model(llama):
    for found in drift(llama, copy.deepcopy(llama)).values():
        assert found.ov_angle == found.qk_angle == 0
        assert found.ov_log_scale == found.qk_log_scale == found.ov_translation == 0


def test_a_planted_scale(llama):
    rows = slice(SIZE, 2 * SIZE)  # of L0H1
    now = changed(llama, lambda a: a.o_proj.weight[:, rows].mul_(3))
    found = drift(llama, now)
    assert found[Head(0, 1)].ov_log_scale == pytest.approx(math.log(3), abs=1e-6)
    assert found[Head(0, 1)].ov_angle == pytest.approx(0, abs=1e-6)
    assert found[Head(0, 1)].qk_angle == found[Head(1, 3)].ov_log_scale == 0


def test_the_gauge_does_not_matter(llama):
    mix = torch.eye(SIZE) + 0.3 * torch.randn(SIZE, SIZE)
    rows, group = slice(SIZE, 2 * SIZE), slice(0, SIZE)  # L0H1 shares its values with L0H0

    def change(attention):
        attention.v_proj.weight[group] = mix.T @ attention.v_proj.weight[group]
        attention.o_proj.weight[:, rows] = attention.o_proj.weight[:, rows] @ mix.inverse().T

    found = drift(llama, changed(llama, change))[Head(0, 1)]
    assert found.ov_angle == pytest.approx(0, abs=1e-5)
    assert found.ov_log_scale == pytest.approx(0, abs=1e-5)


def test_angles_as_of_the_whole_matrices(llama):
    torch.manual_seed(3)
    now = changed(
        llama, lambda a: [w.weight.add_(0.1 * torch.randn_like(w.weight)) for w in a.children()]
    )
    maps = [head_transforms(attach(model), HEADS[:1])[HEADS[0]] for model in (llama, now)]
    found = head_drift({HEADS[0]: maps[0]}, {HEADS[0]: maps[1]})[HEADS[0]]
    for angle, scale, (a, b) in (
        (found.ov_angle, found.ov_log_scale, ("value", "out")),
        (found.qk_angle, found.qk_log_scale, ("query", "key")),
    ):
        before, after = (getattr(one, a) @ getattr(one, b) for one in maps)
        cosine = (before * after).sum() / before.norm() / after.norm()
        assert angle == pytest.approx(math.acos(cosine.item()), abs=1e-6)
        assert angle > 0.05
        assert scale == pytest.approx((after.norm() / before.norm()).log().item(), abs=1e-6)


def test_opposite_maps():
    thin = torch.randn(6, 2).double(), torch.randn(2, 6).double()
    one = HeadMap(*thin, *thin, torch.zeros(6).double())
    other = HeadMap(one.value, -one.out, one.query, one.key, one.shift)
    found = head_drift({HEADS[0]: one}, {HEADS[0]: other})[HEADS[0]]
    assert found.ov_angle == pytest.approx(math.pi, abs=1e-6)
    assert found.qk_angle == 0


def test_a_planted_translation(tiny_model):
    model = tiny_model("gpt2")
    now = copy.deepcopy(model)
    width = model.config.n_embd
    with torch.no_grad():
        now.transformer.h[0].attn.c_attn.bias[2 * width + SIZE] += 1.0  # of L0H1's first value
    found = drift(model, now)[Head(0, 1)]
    size = head_transforms(attach(model), HEADS)[Head(0, 1)]
    written = model.transformer.h[0].attn.c_proj.weight[SIZE].norm().item()
    norm = (size.value @ size.out).norm().item()
    assert found.ov_translation == pytest.approx(written / norm, rel=1e-4)
    assert found.ov_angle == 0
