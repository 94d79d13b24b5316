import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.loss import decoder_norms
from circuitkeep.transcoders.normalization import Scales, estimate_scales, folded


def activations(tokens=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, tokens, 4, generator=generator, dtype=torch.float32)
    shift = torch.tensor([[1.0], [5.0]])[..., None, None]
    size = torch.tensor([0.5, 1.0, 7.0])[None, :, None, None]
    return (values * size + shift).unbind()


def test_scales_are_those_of_all_batches_together():
    inputs, outputs = activations()
    batches = [(inputs[:, part], outputs[:, part]) for part in (slice(0, 7), slice(7, 50))]
    scales = estimate_scales(batches)
    assert_close(scales.input_mean, inputs.mean(1))
    assert_close(scales.output_mean, outputs.mean(1))
    for rms, values in ((scales.input_rms, inputs), (scales.output_rms, outputs)):
        centred = values - values.mean(1, keepdim=True)
        assert_close(rms, centred.square().mean((1, 2)).sqrt())


def test_an_mlp_that_says_nothing_is_refused():
    inputs, outputs = activations()
    outputs[1] = 3.0
    with pytest.raises(ValueError, match="MLP of layer 1 writes the same at every token"):
        estimate_scales([(inputs, outputs)])


@pytest.mark.parametrize("reads", ["stream", "normalized"])
@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk", "batchtopk"])
def test_folded_it_reads_and_writes_the_same_in_the_models_units(
    make, activation, cross_layer, reads
):
    inputs, _ = activations()
    k = 2 if "topk" in activation else None
    own = make(activation=activation, k=k, cross_layer=cross_layer, reads=reads)
    if activation == "topk":  # which in training ranks by what is written
        norms = decoder_norms(own.W_dec)
        for decoders, length in zip(own.W_dec, norms, strict=True):
            decoders /= length[:, None, None]
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(3, 4, generator=generator), torch.rand(3, generator=generator) + 0.5]
    draw += [torch.randn(3, 4, generator=generator), torch.rand(3, generator=generator) + 0.5]
    scales = Scales(*draw)
    read = inputs * own.input_scale(inputs)[..., None]
    read = (read - scales.input_mean[:, None]) / scales.input_rms[:, None, None]
    active = own.activate(read @ own.W_enc.transpose(1, 2) + own.b_enc[:, None])
    expected = own.decode(active) * scales.output_rms[:, None, None] + scales.output_mean[:, None]
    new = folded(own, scales)
    assert (active > 0).any()
    assert_close(new.encode(inputs) > 0, active > 0)
    assert_close(new(inputs), expected, atol=1e-4, rtol=1e-4)
    # An activation counts how much is written, in the units of training.
    for layer, decoders in enumerate(new.W_dec):
        rms = scales.output_rms[list(own.config.written(layer))]
        lengths = (decoders / rms[None, :, None]).flatten(1).norm(dim=1)
        assert_close(lengths, torch.ones_like(lengths))


def test_a_feature_that_writes_nothing_stays_as_it_is(make):
    own = make(layers=1, activation="relu", cross_layer=False)
    own.W_dec[0][2] = 0
    ones = Scales(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, 4), torch.ones(1))
    new = folded(own, ones)
    assert_close(new.W_enc[0, 2], own.W_enc[0, 2])
    assert not new.W_dec[0][2].any()
