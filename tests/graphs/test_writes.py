"""What is written to a stream sums to it, and gradients are autograd's."""

import pytest
import torch

from circuitkeep.graphs import Node
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.trace import trace
from circuitkeep.graphs.writes import (
    Writer,
    feature_readout,
    gradients,
    logit_readout,
    node_readout,
    node_writer,
    stream_writes,
)

EXACT = 1e-9


def passed(oracles, kind, seed=0):
    """A random model with MLPs and real norms: by the oracle, and frozen."""
    held = oracles.Held(oracles.random_model(kind, seed, 3), oracles.prompt(seed))
    return held, freeze(held.backend, held.tokens)


def assert_sums(frozen, writes):
    for layer in range(frozen.n_layers + 1):
        early = writes.times <= 2 * layer
        total = torch.zeros_like(frozen.embedding)
        total.index_add_(0, writes.pos[early], writes.vectors[early])
        torch.testing.assert_close(total, frozen.streams[layer], atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_writes_sum_to_the_stream_at_every_time(oracles, kind):
    _, frozen = passed(oracles, kind)
    assert_sums(frozen, stream_writes(frozen))


@pytest.mark.parametrize("cross_layer", [False, True])
def test_so_they_do_with_any_transcoder_and_any_of_its_features(oracles, cross_layer):
    held, frozen = passed(oracles, "gpt2")
    torch.manual_seed(0)
    transcoder = oracles.empty_transcoder(3, 9, "stream", cross_layer)
    for parameter in transcoder.parameters():
        torch.nn.init.normal_(parameter)
    whole = stream_writes(frozen, transcoder)
    assert_sums(frozen, whole)
    graph = trace(held.backend, held.tokens.tolist(), transcoder, logits=[3], max_features=5)
    some = stream_writes(frozen, transcoder, graph)
    assert_sums(frozen, some)
    counts = [sum(w.kind == "feature" for w in writes.writers) for writes in (whole, some)]
    assert counts[0] > counts[1] == 5
    first = whole.writers.index(next(w for w in whole.writers if w.kind == "feature"))
    assert int((whole.writer == first).sum()) == (3 if cross_layer else 1)


def test_a_transcoder_in_single_precision_reads_a_model_in_double(oracles):
    model = oracles.linear("gpt2", 0)
    transcoder = oracles.exact_transcoder(model).float()
    held = oracles.Held(model, oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    assert_sums(frozen, stream_writes(frozen, transcoder))
    readout = feature_readout(frozen, transcoder, 1, 2, 3)
    expected = transcoder.double().pre_activations(held.mlp_in)[1, 2, 3].item()
    assert readout.value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_gradients_are_autograds(oracles, kind):
    held, frozen = passed(oracles, kind)
    leaf = held.embedding.clone().requires_grad_()
    leaves = held.mlp_out.clone().requires_grad_()
    _, logits = held.run_held(leaf, list(leaves))
    (logits[-1, 2] - logits[-1, 5]).backward()
    found = gradients(frozen, logit_readout(frozen, 2, against=5))
    torch.testing.assert_close(found[0], leaf.grad)
    torch.testing.assert_close(found[2::2], leaves.grad)


def test_a_logit_elsewhere_is_read_there(oracles):
    held, frozen = passed(oracles, "llama")
    readout = logit_readout(frozen, 2, against=5, pos=1)
    expected = held.logits[1, 2] - held.logits[1, 5]
    assert readout.value == pytest.approx(expected.item(), abs=EXACT)
    read = frozen.streams[-1][1] @ readout.direction + readout.bias
    assert read.item() == pytest.approx(readout.value, abs=EXACT)
    assert readout.name == "logit of 2 less that of 5"


def test_nodes_are_writers_or_readouts(oracles):
    _, frozen = passed(oracles, "gpt2")
    assert node_writer(Node("error", 1, 2, 0), None) == Writer("mlp", 1, 2)
    with pytest.raises(ValueError, match="only read"):
        node_writer(Node("logit", 3, 4, 1), None)
    with pytest.raises(ValueError, match="needs its transcoder"):
        node_readout(frozen, None, Node("feature", 1, 2, 0))
    with pytest.raises(ValueError, match="reads nothing"):
        node_readout(frozen, None, Node("error", 1, 2, 0))


def test_writers_have_names():
    names = [
        str(Writer("head", 1, 4, 2)),
        str(Writer("feature", 0, 3, 17)),
        str(Writer("mlp", 2, 0)),
    ]
    assert names == ["L1H2 at 4", "feature 0/17 at 3", "MLP 2 at 0"]
