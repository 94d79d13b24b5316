import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.harvest import run
from circuitkeep.transcoders.replacement import replaced


@pytest.fixture
def transcoder(make):
    """One that fits the backend's model, and is far from it."""
    return make(layers=2, width=32, features=20)


@torch.no_grad()
def by_hand(model, transcoder, tokens, errors=0.0):
    """The replacement model of a Llama, by hooks of torch alone."""
    reads, active, handles = [], [], []

    def write(number):
        def hook(_module, _args, output):
            pre = reads[number] @ transcoder.W_enc[number].T + transcoder.b_enc[number]
            active.append(pre * (pre > transcoder.threshold[number]))
            out = transcoder.b_dec[number].expand_as(output)
            for source in range(number + 1):
                out = out + active[source] @ transcoder.W_dec[source][:, number - source]
            return out + (errors if isinstance(errors, float) else errors[number])

        return hook

    for number, layer in enumerate(model.model.layers):
        norm = layer.post_attention_layernorm
        handles.append(norm.register_forward_pre_hook(lambda _, args: reads.append(args[0])))
        handles.append(layer.mlp.register_forward_hook(write(number)))
    logits = model(tokens).logits
    for handle in handles:
        handle.remove()
    return logits, active


@torch.no_grad()
def test_errors_go_on_from_layer_to_layer(backend, transcoder, tokens):
    expected, active = by_hand(backend.model, transcoder, tokens)
    with replaced(backend, transcoder) as features:
        logits = backend.forward(tokens)
        again = backend.forward(tokens)
    assert_close(logits, expected)
    assert_close(again, expected)
    assert len(features) == 2
    for got, own in zip(features, active, strict=True):
        assert_close(got, own)
    # The second layer does not read what it would in the model.
    own_inputs, _ = run(backend, tokens)
    assert (transcoder.encode_layer(1, own_inputs[1]) - features[1]).abs().max() > 0.01


@torch.no_grad()
def test_with_its_errors_on_a_prompt_it_is_the_model(backend, transcoder, tokens):
    inputs, outputs = run(backend, tokens[:1])
    errors = (outputs - transcoder(inputs))[:, 0]
    own = backend.forward(tokens[:1])
    with replaced(backend, transcoder, errors=errors):
        assert_close(backend.forward(tokens[:1]), own, atol=1e-4, rtol=1e-4)
    with replaced(backend, transcoder):
        assert (backend.forward(tokens[:1]) - own).abs().max() > 0.1
    assert_close(backend.forward(tokens[:1]), own)


@torch.no_grad()
def test_only_where_it_is_asked_for(backend, transcoder, tokens):
    own = backend.forward(tokens)
    positions = torch.arange(12) >= 5
    with replaced(backend, transcoder, positions=positions):
        logits = backend.forward(tokens)
    assert_close(logits[:, :5], own[:, :5])
    assert (logits[:, 5:] - own[:, 5:]).abs().max() > 0.1
    rows = torch.zeros(3, 12, dtype=torch.bool)
    rows[1] = True
    with replaced(backend, transcoder, positions=rows):
        logits = backend.forward(tokens)
    assert_close(logits[[0, 2]], own[[0, 2]])
    assert (logits[1] - own[1]).abs().max() > 0.1


def test_gradients_go_through(backend, transcoder, tokens):
    transcoder.W_dec[0].requires_grad_(True)
    with replaced(backend, transcoder):
        backend.forward(tokens).logsumexp(-1).sum().backward()
    assert transcoder.W_dec[0].grad.abs().sum() > 0


def test_a_transcoder_of_another_model_is_refused(backend, make):
    with (
        pytest.raises(ValueError, match="3 layers of width 4, this model has 2 of width 32"),
        replaced(backend, make()),
    ):
        pass
