import pytest
import torch

from circuitkeep.capture.shuffled import shuffled_weights


def test_shuffled_weights_are_put_back(tiny_model):
    model = tiny_model("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with shuffled_weights(model, 0):
        assert model.lm_head.weight is model.transformer.wte.weight, "tied weights stay tied"
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.flatten().sort()[0], before[name].flatten().sort()[0])
            assert not torch.equal(parameter, before[name])
        one = model.transformer.wte.weight.clone()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    with shuffled_weights(model, 0):
        assert torch.equal(model.transformer.wte.weight, one), "a seed is a twin"
    with shuffled_weights(model, 1):
        assert not torch.equal(model.transformer.wte.weight, one)


def test_shuffled_weights_are_put_back_after_an_error(tiny_model):
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail():
        with shuffled_weights(model, 0):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
