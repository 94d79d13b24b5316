import itertools

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.harvest import run
from circuitkeep.transcoders.quality import Quality, measure_quality

from .test_replacement import by_hand


@pytest.fixture
def transcoder(make):
    transcoder = make(layers=2, width=32, features=20)
    transcoder.threshold[0, 3] = 1e6  # which is never active
    return transcoder


@pytest.fixture
def mask(tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 7:] = False
    return mask


@torch.no_grad()
def nats(logits, tokens, mask):
    total, count = 0.0, 0
    for row, pos in mask[:, 1:].nonzero().tolist():
        total -= logits[row, pos].log_softmax(-1)[tokens[row, pos + 1]].item()
        count += 1
    return total / count


@torch.no_grad()
def ablated(model, tokens, values):
    handles = [
        layer.mlp.register_forward_hook(lambda _m, _a, out, value=value: value.expand_as(out))
        for layer, value in zip(model.model.layers, values, strict=True)
    ]
    logits = model(tokens).logits
    for handle in handles:
        handle.remove()
    return logits


@torch.no_grad()
def test_every_figure_by_hand(backend, transcoder, tokens, mask):
    told = []
    found = measure_quality(
        backend, transcoder, tokens, mask, rows_at_once=2, progress=lambda *of: told.append(of)
    )
    inputs, outputs = run(backend, tokens)
    inputs, outputs = inputs[:, mask], outputs[:, mask]
    assert found.tokens == 12 + 7 + 12
    active, written = transcoder.encode(inputs), transcoder(inputs)
    means = outputs.mean(1)
    for layer in range(2):
        missed = (outputs[layer] - written[layer]).square().sum()
        spread = (outputs[layer] - means[layer]).square().sum()
        assert found.explained_variance[layer] == pytest.approx((1 - missed / spread).item())
        assert found.active[layer] == pytest.approx((active[layer] > 0).sum().item() / 31)
        dead = (active[layer] > 0).sum(0) == 0
        assert found.dead[layer] == pytest.approx(dead.float().mean().item())
        assert_close(found.density[layer].float(), (active[layer] > 0).float().mean(0))
    assert found.density[0, 3] == 0
    model = backend.model
    assert found.loss_nats == pytest.approx(nats(model(tokens).logits, tokens, mask), rel=1e-5)
    whole = nats(by_hand(model, transcoder, tokens)[0], tokens, mask)
    assert found.replaced_nats == pytest.approx(whole, rel=1e-5)
    floor = nats(ablated(model, tokens, means), tokens, mask)
    assert found.mean_ablated_nats == pytest.approx(floor, rel=1e-5)
    nothing = nats(ablated(model, tokens, 0 * means), tokens, mask)
    assert found.zero_ablated_nats == pytest.approx(nothing, rel=1e-5)
    own = found.loss_nats
    assert found.recovered == pytest.approx(1 - (whole - own) / (floor - own), rel=1e-3)
    assert told[-1] == (12, 12)
    assert all(one <= two for one, two in itertools.pairwise(told))


@torch.no_grad()
def test_one_that_writes_the_mean_recovers_nothing(backend, transcoder, tokens, mask):
    _, outputs = run(backend, tokens)
    for decoders in transcoder.W_dec:
        decoders.zero_()
    transcoder.b_dec.copy_(outputs[:, mask].mean(1))
    found = measure_quality(backend, transcoder, tokens, mask)
    assert found.explained_variance == pytest.approx((0, 0), abs=1e-5)
    assert found.recovered == pytest.approx(0, abs=1e-4)


def test_something_must_be_left_to_measure_on(backend, transcoder, tokens, mask):
    with pytest.raises(ValueError, match="no token is left"):
        measure_quality(backend, transcoder, tokens, mask, skip_first=12)


@torch.no_grad()
def test_what_is_left_out_at_the_start_is_not_replaced(backend, transcoder, tokens, mask):
    found = measure_quality(backend, transcoder, tokens, mask, skip_first=7)
    assert found.tokens == 5 + 0 + 5
    whole = measure_quality(backend, transcoder, tokens, mask)
    assert found.loss_nats == pytest.approx(whole.loss_nats)
    short = mask.clone()
    short[:, 8:] = False  # predictions before anything is replaced
    same = measure_quality(backend, transcoder, tokens, short, skip_first=7)
    assert same.replaced_nats == pytest.approx(same.loss_nats)


def test_the_histogram_counts_every_feature_once():
    density = torch.tensor([[0.0, 0.001, 0.5, 1.0], [0.0, 0.0, 0.02, 0.2]], dtype=torch.float64)
    found = Quality(1000, (0.5, 0.7), (2.0, 3.0), (0.25, 0.5), density, 1.0, 2.0, 5.0, 9.0)
    bins = found.histogram()
    ends, counts = bins["from"], bins["features"]
    for row, values in zip(counts, density.tolist(), strict=True):
        assert sum(row) == 4
        for low, high, count in zip(ends, [*ends[1:], 1.01], row, strict=True):
            assert count == sum(low <= value < high for value in values)
    assert counts[0][0] == 1
    assert counts[1][0] == 2
    assert found.recovered == 0.75
    assert found.recovered_of_zero == 0.875
    assert found.summary()["mean_explained_variance"] == pytest.approx(0.6)
