"""Traced graphs: their nodes, their choices, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.graphs import Graph
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.influence import influence
from circuitkeep.graphs.trace import trace
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig

TOKENS = [3, 1, 4, 1, 5, 9, 2]
KINDS = ["gpt2", "llama", "qwen3", "neox", "mistral"]


def transcoder_for(backend, **options):
    width = freeze(backend, torch.tensor([0])).embedding.shape[1]
    torch.manual_seed(0)
    made = CrossLayerTranscoder(TranscoderConfig(backend.n_layers, width, 12, **options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
        made.threshold.abs_()
    return made


@pytest.fixture(params=KINDS)
def backend(request, tiny_model):
    return attach(tiny_model(request.param))


@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("reads", ["stream", "normalized"])
def test_what_flows_in_sums_to_the_value(backend, cross_layer, reads):
    transcoder = transcoder_for(backend, cross_layer=cross_layer, reads=reads)
    graph = trace(backend, TOKENS, transcoder)
    receives = graph.of_kind("feature") | graph.of_kind("logit")
    inflow = graph.edges.sum(1) + graph.biases
    assert_close(inflow[receives], graph.values[receives], atol=1e-5, rtol=1e-4)
    assert not graph.edges[~receives].any()
    assert not graph.biases[~receives].any()
    assert graph.of_kind("feature").sum() > 5


def test_nodes_and_their_numbers(tiny_model):
    backend = attach(tiny_model("llama"))
    transcoder = transcoder_for(backend)
    graph = trace(backend, TOKENS, transcoder, text=lambda token: f"<{token}>")
    assert graph.words == tuple(f"<{token}>" for token in TOKENS)
    frozen = freeze(backend, torch.tensor(TOKENS))
    activations = transcoder.encode(frozen.mlp_in)
    features = [node for node in graph.nodes if node.kind == "feature"]
    assert features == sorted(features)
    assert {(n.layer, n.pos, n.index) for n in features} == {
        tuple(place) for place in activations.nonzero().tolist()
    }
    for place, node in enumerate(graph.nodes):
        assert graph.places[node] == place
        if node.kind == "feature":
            expected = activations[node.layer, node.pos, node.index].item()
            assert graph.activations[place].item() == pytest.approx(expected)
    errors = [node for node in graph.nodes if node.kind == "error"]
    assert len(errors) == backend.n_layers * len(TOKENS)
    # Nothing flows backwards: to an earlier layer, or from a later position.
    for target, source in graph.edges.nonzero().tolist():
        to, start = graph.nodes[target], graph.nodes[source]
        assert start.layer < to.layer
        assert start.pos <= to.pos
    assert graph.biases[graph.of_kind("logit")].any()


def test_batches_change_nothing(tiny_model):
    backend = attach(tiny_model("llama"))
    transcoder = transcoder_for(backend)
    told = []
    one = trace(backend, TOKENS, transcoder, batch=1, progress=lambda *args: told.append(args))
    assert_close(trace(backend, TOKENS, transcoder).edges, one.edges, atol=1e-6, rtol=1e-4)
    receives = int((one.of_kind("feature") | one.of_kind("logit")).sum())
    assert told[-1] == (receives, receives)


def test_without_a_transcoder_mlps_are_errors(tiny_model):
    backend = attach(tiny_model("llama"))
    graph = trace(backend, TOKENS)
    assert not graph.of_kind("feature").any()
    inflow = (graph.edges.sum(1) + graph.biases)[graph.of_kind("logit")]
    assert_close(inflow, graph.values[graph.of_kind("logit")], atol=1e-5, rtol=1e-4)
    assert graph.edges[:, graph.of_kind("error")].any()


def test_which_logits(tiny_model):
    backend = attach(tiny_model("llama"))
    probabilities = freeze(backend, torch.tensor(TOKENS)).logits[-1].softmax(-1)
    likeliest = probabilities.argsort(descending=True).tolist()

    def chosen(**options):
        graph = trace(backend, TOKENS, **options)
        return [node.index for node in graph.nodes if node.kind == "logit"]

    two = float(probabilities[likeliest[:2]].sum())
    assert chosen(share=two - 1e-4) == likeliest[:2]
    assert chosen(share=two + 1e-4) == likeliest[:3]
    assert chosen() == likeliest[:10]  # at most ten
    rare = likeliest[-1]
    assert chosen(logits=[rare, likeliest[4]]) == [likeliest[4], rare]


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_features_that_are_left_out_become_error(tiny_model, batch):
    backend = attach(tiny_model("llama"))
    transcoder = transcoder_for(backend)
    whole = trace(backend, TOKENS, transcoder)
    some = trace(backend, TOKENS, transcoder, max_features=6, batch=batch)
    features = [node for node in some.nodes if node.kind == "feature"]
    assert len(features) == 6
    receives = some.of_kind("feature") | some.of_kind("logit")
    inflow = (some.edges.sum(1) + some.biases)[receives]
    assert_close(inflow, some.values[receives], atol=1e-5, rtol=1e-4)
    for target in [*features, some.nodes[-1]]:
        for source in features:
            kept = some.edges[some.places[target], some.places[source]]
            assert_close(kept, whole.edges[whole.places[target], whole.places[source]])
    # Told one by one, they are the most influential of the whole graph but for what is not yet
    # known of those between.
    scores = influence(whole)[whole.of_kind("feature")]
    least = scores.sort(descending=True).values[:6].sum()
    assert sum(influence(whole)[whole.places[node]] for node in features) > 0.8 * least


def test_more_than_there_are(tiny_model):
    backend = attach(tiny_model("llama"))
    transcoder = transcoder_for(backend)
    whole, all_of_them = (trace(backend, TOKENS, transcoder, max_features=n) for n in (None, 10**6))
    assert torch.equal(whole.edges, all_of_them.edges)


def test_saved(tiny_model, tmp_path):
    graph = trace(attach(tiny_model("llama")), TOKENS)
    graph.save(tmp_path / "graph.safetensors")
    assert torch.equal(Graph.load(tmp_path / "graph.safetensors").edges, graph.edges)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "a prompt of 0 tokens"),
        ([1] * 1000, {}, "a prompt of 1000 tokens"),
        ([1, 10**6], {}, "token 1000000 is outside"),
        ([1, -1], {}, "token -1 is outside"),
        (TOKENS, {"share": 0.0}, "share=0.0"),
        (TOKENS, {"logits": [10**6]}, r"logits=\[1000000\]"),
        (TOKENS, {"logits": []}, r"logits=\[\]"),
        (TOKENS, {"logits": [1, 1]}, "different tokens"),
        (TOKENS, {"max_features": 0}, "max_features=0"),
        (TOKENS, {"batch": 0}, "batch=0"),
    ],
)
def test_mistakes(tiny_model, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        trace(attach(tiny_model("llama")), tokens, **options)


def test_a_transcoder_of_another_model(tiny_model):
    backend = attach(tiny_model("llama"))
    other = CrossLayerTranscoder(TranscoderConfig(7, 8, 4))
    with pytest.raises(ValueError, match="7 layers of width 8, this one has 2 of 32"):
        trace(backend, TOKENS, other)


def test_what_cannot_be_held_still(tiny_model, as_bridge):
    with pytest.raises(ValueError, match="softcap"):
        trace(attach(tiny_model("gemma2")), TOKENS)
    with pytest.raises(ValueError, match="not on a TransformerBridge"):
        trace(attach(as_bridge(tiny_model("llama"))), TOKENS)
