"""Where features are active and what they promote, against loops over every token."""

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.capture.weights import token_weights
from circuitkeep.graphs.features import AFTER, BEFORE, logit_effects, top_contexts
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig

FEATURES = [(0, 0), (0, 4), (1, 2), (1, 4), (1, 5)]


@pytest.fixture(scope="module")
def transcoder():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = CrossLayerTranscoder(TranscoderConfig(2, 32, 6))
        with torch.no_grad():
            made.threshold[:] = 0.2
            for decoders in made.W_dec:
                decoders.normal_()
            made.b_enc[1, 5] = -100.0  # never active
    return made


@pytest.fixture(scope="module")
def backend(tiny_model):
    return attach(tiny_model("llama"))


def activations(transcoder, backend, rows):
    """Per layer, row, position and feature."""
    with torch.no_grad(), backend.capture(Sites(mlp_in=(0, 1))) as captured:
        backend.forward(rows)
    return transcoder.encode(torch.stack([captured.mlp_ins[0], captured.mlp_ins[1]]))


def test_contexts_are_the_rows_with_the_highest_peaks(transcoder, backend, tokens):
    rows = torch.cat([tokens, tokens.flip(1), tokens.roll(3, 1)])
    told = []
    found = top_contexts(
        transcoder, backend, rows, FEATURES, 2, batch=4, progress=lambda *done: told.append(done)
    )
    assert told == [(4, 9), (8, 9), (9, 9)]
    values = activations(transcoder, backend, rows)
    assert list(found) == FEATURES
    for layer, index in FEATURES:
        peaks = []
        for row in range(len(rows)):
            own = values[layer, row, 1:, index]  # the first position does not count
            peaks.append((own.max().item(), -row))
        wanted = [(peak, -row) for peak, row in sorted(peaks, reverse=True) if peak > 0][:2]
        assert len(found[layer, index]) == len(wanted)
        for context, (peak, row) in zip(found[layer, index], wanted, strict=True):
            assert max(context.activations[1:]) == pytest.approx(peak, rel=1e-5)
            # Rows of twelve tokens are shorter than what stands before a late peak.
            assert rows[row].tolist()[: len(context.tokens)] == list(context.tokens)
            assert context.activations == pytest.approx(
                values[layer, row, : len(context.tokens), index].tolist(), abs=1e-5
            )
    assert found[1, 5] == ()


def test_a_context_is_what_stands_around_the_peak(transcoder, tiny_model):
    backend = attach(tiny_model("llama", max_position_embeddings=64))
    rows = torch.randint(0, 32, (1, 60), generator=torch.Generator().manual_seed(3))
    (context,) = top_contexts(transcoder, backend, rows, [(1, 2)], 1)[1, 2]
    values = activations(transcoder, backend, rows)[1, 0, :, 2]
    peak = 1 + values[1:].argmax().item()
    cut = slice(max(0, peak - BEFORE), peak + AFTER + 1)
    assert context.tokens == tuple(rows[0, cut].tolist())
    assert context.activations == pytest.approx(values[cut].tolist(), abs=1e-5)


def test_positions_that_do_not_count_have_no_peak(transcoder, backend, tokens):
    counts = torch.zeros_like(tokens, dtype=torch.bool)
    counts[1, 4] = True
    values = activations(transcoder, backend, tokens)
    for feature in FEATURES:
        peak = values[feature[0], 1, 4, feature[1]].item()
        found = top_contexts(transcoder, backend, tokens, [feature], 3, counts)[feature]
        assert len(found) == (peak > 0)
        for context in found:
            assert context.activations[4] == pytest.approx(peak, rel=1e-5)


def test_nothing_is_captured_for_no_features(transcoder, backend, tokens):
    assert top_contexts(transcoder, backend, tokens, []) == {}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_effects_are_those_of_the_decoders_through_the_unembedding(transcoder, tiny_model, kind):
    backend = attach(tiny_model(kind))
    weights = token_weights(backend, fold_norm=True)
    found = logit_effects(transcoder, weights, FEATURES, 3)
    for layer, index in FEATURES:
        logits = torch.zeros(weights.W_U.shape[1])
        for place in range(transcoder.W_dec[layer].shape[1]):
            for vector in transcoder.W_dec[layer][index, place][None]:
                logits += (vector @ weights.W_U).detach()
        logits -= logits.mean()
        pairs = sorted(((value, token) for token, value in enumerate(logits.tolist())))
        effects = found[layer, index]
        assert [token for token, _ in effects.suppressed] == [token for _, token in pairs[:3]]
        assert [token for token, _ in effects.promoted] == [token for _, token in pairs[:-4:-1]]
        assert effects.promoted[0][1] == pytest.approx(pairs[-1][0], rel=1e-4)


def test_effects_worked_by_hand():
    from circuitkeep.capture.weights import TokenWeights

    made = CrossLayerTranscoder(TranscoderConfig(2, 2, 1))
    with torch.no_grad():
        made.W_dec[0][0] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # to layers 0 and 1
    weights = TokenWeights(
        torch.zeros(3, 2), torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), None
    )
    effects = logit_effects(made, weights, [(0, 0)], 1)[0, 0]
    # Logits 3, 6 and 0, whose mean is 3.
    assert effects.promoted == ((1, pytest.approx(3.0)),)
    assert effects.suppressed == ((2, pytest.approx(-3.0)),)
