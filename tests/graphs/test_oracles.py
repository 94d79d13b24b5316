"""Frozen passes and traces against models of which every path is known.

Two expectations, neither of which uses `circuitkeep.graphs`: products along every path through
heads, added up in plain loops, and autograd through the model with patterns and norms held.
"""

import pytest
import torch

from circuitkeep.graphs import Node
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.trace import trace

EXACT = 1e-9
ATTENTION_ONLY = ["gpt2", "llama", "neox"]
LINEAR = ["gpt2", "gpt2 normalized", "neox", "split", "split neox"]


def linear_case(oracles, name, seed=0, length=4):
    """A held pass of a model with linear MLPs, and its exact transcoder."""
    kind, reads = ("neox" if "neox" in name else "gpt2"), "stream"
    if "split" in name:
        model = oracles.split_model(seed, kind=kind)
        transcoder = oracles.split_transcoder(model)
    else:
        reads = "normalized" if "normalized" in name else "stream"
        model = oracles.linear(kind, seed, layers=3, reads=reads)
        transcoder = oracles.exact_transcoder(model, reads)
    return oracles.Held(model, oracles.prompt(seed, length)), transcoder


# The oracles themselves.


@pytest.mark.parametrize("kind", ATTENTION_ONLY)
def test_the_two_oracles_agree_on_attention_only_models(oracles, kind):
    held = oracles.Held(oracles.attention_only(kind, 0), oracles.prompt(0))
    assert held.mlp_out.abs().max() == 0
    embedding = held.embedding.clone().requires_grad_()
    _, logits = held.run_held(embedding, held.mlp_out)
    torch.testing.assert_close(logits, held.logits)
    (logits[-1, 3] - logits[-1].mean()).backward()
    direction = held.logit_direction(3)
    for pos, vector in enumerate(held.embedding):
        paths = list(held.paths(vector, pos, 0, 2, 4))
        expected = sum((arrived @ direction).item() for _, arrived in paths)
        assert (vector @ embedding.grad[pos]).item() == pytest.approx(expected, abs=EXACT)
    # From position 3 to 4: one head at either layer, or two with the change of position at either.
    assert len(list(held.paths(held.embedding[3], 3, 0, 2, 4))) == 4 + 4 + 2 * 16


@pytest.mark.parametrize("name", LINEAR)
def test_exact_transcoders_are_exact(oracles, name):
    held, transcoder = linear_case(oracles, name)
    torch.testing.assert_close(transcoder(held.mlp_in), held.mlp_out)
    assert held.mlp_out.abs().max() > 1
    active = transcoder.encode(held.mlp_in) > 0
    assert active.float().mean() == 0.5
    per_position = active.flatten(0, 1).unique(dim=0)
    assert len(per_position) > 3  # which features are active depends on the input


def test_a_split_transcoder_writes_across_layers(oracles):
    transcoder = oracles.split_transcoder(oracles.split_model(0))
    assert transcoder.W_dec[0].shape[1] == 3
    assert all(transcoder.W_dec[0][:, place].abs().max() > 0.1 for place in range(3))


# Frozen passes.


@pytest.mark.parametrize("kind", ATTENTION_ONLY)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_frozen_pass_moves_vectors_as_heads_do(oracles, kind, seed):
    held = oracles.Held(oracles.attention_only(kind, seed), oracles.prompt(seed))
    frozen = freeze(held.backend, held.tokens)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for layer in (0, 1):
        for key in (0, 3):
            x = torch.zeros_like(frozen.embedding)
            x[key] = vector
            heads = frozen.attend_heads(layer, x)
            for head in range(4):
                for query in range(5):
                    expected = held.through(vector, layer, head, query, key)
                    torch.testing.assert_close(heads[head, query], expected, atol=EXACT, rtol=0)
            torch.testing.assert_close(frozen.attend(layer, x), heads.sum(0), atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", ATTENTION_ONLY)
def test_pulling_is_the_transpose_of_attending(oracles, kind):
    held = oracles.Held(oracles.attention_only(kind, 0), oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    x, gradient = torch.randn(2, 3, 5, 16, dtype=torch.float64).unbind()
    for layer in (0, 1):
        forth = (frozen.attend(layer, x) * gradient).sum()
        back = (x * frozen.pull(layer, gradient)).sum()
        torch.testing.assert_close(forth, back)


@pytest.mark.parametrize("name", LINEAR)
def test_a_frozen_pass_holds_what_the_model_computed(oracles, name):
    held, _ = linear_case(oracles, name)
    frozen = freeze(held.backend, held.tokens)
    for found, expected in (
        (frozen.embedding, held.embedding),
        (frozen.patterns, held.patterns),
        (frozen.mlp_in, held.mlp_in),
        (frozen.mlp_out, held.mlp_out),
        (frozen.logits, held.logits),
        (frozen.final_scale, 1 / held.sizes[-1][:, 0]),
        (frozen.scales, 1 / torch.stack(held.sizes[:-1])[..., 0]),
    ):
        torch.testing.assert_close(found, expected, atol=EXACT, rtol=EXACT)
    assert frozen.parallel == ("neox" in name,) * 3
    for token in (0, 7):
        expected = held.logit_direction(token)
        torch.testing.assert_close(frozen.readout(token), expected, atol=EXACT, rtol=EXACT)


# Traces.


@pytest.mark.parametrize("kind", ATTENTION_ONLY)
@pytest.mark.parametrize("seed", [0, 1])
def test_edges_of_attention_only_models_are_path_products(oracles, kind, seed):
    held = oracles.Held(oracles.attention_only(kind, seed), oracles.prompt(seed))
    graph = trace(held.backend, held.tokens.tolist(), logits=[1, 5])
    for token in (1, 5):
        target = graph.places[Node("logit", 2, 4, token)]
        direction = held.logit_direction(token)
        for pos, number in enumerate(held.tokens.tolist()):
            ways = held.paths(held.embedding[pos], pos, 0, 2, 4)
            expected = sum((arrived @ direction).item() for _, arrived in ways)
            found = graph.edges[target, graph.places[Node("embedding", -1, pos, number)]].item()
            assert found == pytest.approx(expected, abs=EXACT)
    assert_sums(graph, held)
    assert graph.edges[:, graph.of_kind("error")].abs().max() < EXACT


@pytest.mark.parametrize("kind", ["induction", "two_hops", "duplicate_token"])
def test_edges_of_wired_models_are_path_products(oracles, kind):
    found = oracles.wired(kind, 0)
    tokens = torch.tensor([0, 7, 12, 7])
    held = oracles.Held(found.model, tokens)
    said = int(held.logits[-1].argmax())
    graph = trace(held.backend, tokens.tolist(), logits=[said])
    direction = held.logit_direction(said)
    for pos in range(4):
        ways = held.paths(held.embedding[pos], pos, 0, len(held.heads), 3)
        expected = sum((arrived @ direction).item() for _, arrived in ways)
        assert graph.edges[-1, pos].item() == pytest.approx(expected, abs=EXACT)
    assert_sums(graph, held)


def test_the_wired_induction_model_says_what_stood_behind_the_earlier_token(oracles):
    tokens = torch.tensor([0, 7, 12, 9, 20, 7])
    held = oracles.Held(oracles.wired("induction", 0).model, tokens)
    graph = trace(held.backend, tokens.tolist(), logits=[12])
    incoming = graph.edges[-1, :6]
    assert incoming.argmax() == 2
    assert incoming[2] > 0.9 * graph.values[-1]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("seed", [0, 1])
def test_edges_of_linear_models_are_autograds(oracles, name, seed):
    """Every edge of the graph."""
    held, transcoder = linear_case(oracles, name, seed)
    graph = trace(held.backend, held.tokens.tolist(), transcoder, logits=[3, 8])
    scale = transcoder.input_scale(held.mlp_in)
    activations = transcoder.encode(held.mlp_in)
    embedding = held.embedding.clone().requires_grad_()
    leaves = held.mlp_out.clone().requires_grad_()
    read, logits = held.run_held(embedding, leaves)
    for node in graph.nodes:
        if node.kind == "logit":
            value = logits[-1, node.index] - logits[-1].mean()
        elif node.kind == "feature":
            stream = read[node.layer, node.pos] * scale[node.layer, node.pos]
            encoder = transcoder.W_enc[node.layer, node.index]
            value = stream @ encoder + transcoder.b_enc[node.layer, node.index]
        else:
            assert graph.edges[graph.places[node]].abs().max() == 0
            continue
        own = graph.places[node]
        assert graph.values[own].item() == pytest.approx(value.item(), abs=EXACT)
        by_token, by_mlp = torch.autograd.grad(
            value, (embedding, leaves), retain_graph=True, materialize_grads=True
        )
        expected = [
            source_value(source, held, transcoder, activations, by_token, by_mlp)
            for source in graph.nodes
        ]
        torch.testing.assert_close(graph.edges[own], torch.stack(expected), atol=EXACT, rtol=EXACT)
    assert_sums(graph, held)
    assert graph.edges[:, graph.of_kind("error")].abs().max() < EXACT
    assert (graph.edges.abs() > 1e-6).sum() > 500


def source_value(node, held, transcoder, activations, by_token, by_mlp):
    """What a source adds to a target with these gradients."""
    if node.kind == "embedding":
        return held.embedding[node.pos] @ by_token[node.pos]
    if node.kind != "feature":
        return torch.zeros((), dtype=torch.float64)
    strength = activations[node.layer, node.pos, node.index]
    decoders = transcoder.W_dec[node.layer][node.index]
    last = node.layer + len(decoders)
    return strength * (decoders * by_mlp[node.layer : last, node.pos]).sum()


@pytest.mark.parametrize("name", LINEAR)
def test_edges_of_linear_models_are_path_products(oracles, name):
    """Into one feature of each layer and the logit, from every feature and embedding."""
    held, transcoder = linear_case(oracles, name)
    graph = trace(held.backend, held.tokens.tolist(), transcoder, logits=[3])
    scale = transcoder.input_scale(held.mlp_in)
    activations = transcoder.encode(held.mlp_in)
    features = [node for node in graph.nodes if node.kind == "feature" and node.pos == 3]
    targets = [[n for n in features if n.layer == layer][-1] for layer in range(3)]
    for target in [*targets, graph.nodes[-1]]:
        if target.kind == "logit":
            direction, stop, layers = held.logit_direction(3), 3, 3
        else:
            encoder = transcoder.W_enc[target.layer, target.index]
            direction = encoder * scale[target.layer, target.pos]
            layers = target.layer
            stop = layers + ("neox" not in name)
        for source in graph.nodes:
            if source.kind not in ("embedding", "feature"):
                continue
            expected = 0.0
            if source.kind == "embedding":
                writes = [(held.embedding[source.pos], 0)]
            else:
                strength = activations[source.layer, source.pos, source.index]
                decoders = transcoder.W_dec[source.layer][source.index]
                writes = [(strength * row, source.layer + 1 + i) for i, row in enumerate(decoders)]
            for vector, first in writes:
                if first <= layers:
                    ways = held.paths(vector, source.pos, first, stop, 3)
                    expected += sum((arrived @ direction).item() for _, arrived in ways)
            found = graph.edges[graph.places[target], graph.places[source]].item()
            assert found == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_with_real_mlps_and_any_transcoder_everything_still_adds_up(oracles, kind):
    held = oracles.Held(oracles.random_model(kind, 0, 3), oracles.prompt(0))
    torch.manual_seed(0)
    for cross_layer in (False, True):
        transcoder = oracles.empty_transcoder(3, 9, "normalized", cross_layer)
        for parameter in transcoder.parameters():
            torch.nn.init.normal_(parameter)
        transcoder.threshold.data.abs_()
        for most in (None, 7):
            graph = trace(
                held.backend, held.tokens.tolist(), transcoder, logits=[2], max_features=most
            )
            assert_sums(graph, held)
            assert graph.edges[:, graph.of_kind("error")].abs().max() > 0.1
            pre = transcoder.pre_activations(held.mlp_in)
            count = 0
            for node, value in zip(graph.nodes, graph.values.tolist(), strict=True):
                if node.kind == "feature":
                    expected = pre[node.layer, node.pos, node.index].item()
                    assert value == pytest.approx(expected, abs=EXACT)
                    count += 1
            assert count == most if most else count > 20


def assert_sums(graph, held):
    """Edges into each node and its bias sum to its value, and logits are the model's."""
    reads = graph.of_kind("feature") | graph.of_kind("logit")
    total = graph.edges.sum(1) + graph.biases
    torch.testing.assert_close(total[reads], graph.values[reads], atol=EXACT, rtol=EXACT)
    for node, value in zip(graph.nodes, graph.values.tolist(), strict=True):
        if node.kind == "logit":
            expected = held.logits[-1, node.index] - held.logits[-1].mean()
            assert value == pytest.approx(expected.item(), abs=EXACT)
