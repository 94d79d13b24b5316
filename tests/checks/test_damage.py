import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.capture.weights import head_weights
from circuitkeep.checks.damage import KINDS, damaged, scale_for
from circuitkeep.circuits import Head

ARCHITECTURES = ["gpt2", "llama", "neox", "qwen3"]


def products(backend, layer):
    weights = head_weights(backend, [layer])
    qk, ov = weights.qk(), weights.ov()
    return {
        "qk": (qk[0] @ qk[1])[0].detach().clone(),
        "ov": (ov[0] @ ov[1])[0].detach().clone(),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_products_change_and_by_as_much_as_is_said(tiny_model, architecture, kind):
    model = tiny_model(architecture)
    backend = attach(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = products(backend, 1)
    state = torch.random.get_rng_state()
    with damaged(backend, [Head(1, 2)], kind, 0.5, seed=3):
        new = products(backend, 1)
        assert all(torch.equal(products(backend, 0)[k], v) for k, v in products(backend, 0).items())
    (other,) = set(KINDS) - {kind}
    assert torch.equal(new[other], old[other])
    size = (new[kind] - old[kind]).norm(dim=(1, 2)) / old[kind].norm(dim=(1, 2))
    assert size[2].item() == pytest.approx(0.5, rel=1e-3)
    assert size[[0, 1, 3]].max() == 0, "heads that share its keys and values are as they were"
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_noise_is_put_back_after_an_error_and_in_half_precision(tiny_model):
    model = tiny_model("llama", dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backend = attach(model)

    def fail():
        with damaged(backend, [Head(0, 1), Head(1, 1)], "ov", 2.0, 0):
            assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_seed_is_a_direction(tiny_model):
    backend = attach(tiny_model("llama"))
    old = products(backend, 0)["qk"]

    def change(scale, seed):
        with damaged(backend, [Head(0, 0)], "qk", scale, seed):
            return (products(backend, 0)["qk"] - old)[0]

    one = change(0.5, 0)
    torch.testing.assert_close(change(1.0, 0), 2 * one, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(change(0.5, 1), one, rtol=0.1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_are_refused(tiny_model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    backend = attach(peft.get_peft_model(tiny_model("llama"), config).base_model.model)
    with (
        pytest.raises(ValueError, match="the weights of L0H1 are no plain parameters"),
        damaged(backend, [Head(0, 1)], "qk", 1.0, 0),
    ):
        pass


def test_the_scale_of_a_loss_is_found():
    asked = []

    def loss_at(scale):
        asked.append(scale)
        return 1 - 1 / (1 + scale**2)

    known = {}
    scale = scale_for(loss_at, 0.2, known, tolerance=0.005)
    assert scale == pytest.approx(0.5, abs=0.02)
    assert known[scale] == pytest.approx(0.2, abs=0.005)
    first = len(asked)
    scale = scale_for(loss_at, 0.5, known, tolerance=0.005)
    assert scale == pytest.approx(1.0, abs=0.02)
    assert len(set(asked)) == len(asked), "nothing is measured twice"
    assert first < 10
    assert len(asked) - first < 10


def test_a_loss_that_cannot_be_had_is_none():
    assert scale_for(lambda scale: 0.1, 0.2, {}) is None, "saturated below"
    assert scale_for(lambda scale: float(scale > 1.3), 0.2, {}) is None, "leaps over it"
    assert scale_for(lambda scale: -0.1 if scale < 1 else scale - 1, 0.2, {}) == pytest.approx(
        1.2, abs=0.011
    ), "a gain comes first"
