"""The flow graph conserves the readout, and its edges are sums of path products."""

import pytest
import torch

from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.heads import edge_values, head_graph
from circuitkeep.graphs.writes import Writer, feature_readout, logit_readout

EXACT = 1e-9
MODELS = [
    ("gpt2", "attention_only"),
    ("llama", "attention_only"),
    ("neox", "attention_only"),
    ("gpt2", "linear"),
    ("neox", "linear"),
]


@pytest.fixture
def case(oracles):
    """A held pass by the oracle and the same by the code under test, of a random model."""

    def make(kind, family, seed=0, layers=2, **settings):
        model = getattr(oracles, family)(kind, seed, layers, **settings)
        held = oracles.Held(model, oracles.prompt(seed))
        return held, freeze(held.backend, held.tokens)

    return make


@pytest.mark.parametrize(("kind", "family"), MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_graph_holds_the_models_logit_and_conserves_it(case, kind, family, seed):
    held, frozen = case(kind, family, seed)
    logits = held.logits[-1]
    for token in (0, 3):
        graph = head_graph(frozen, logit_readout(frozen, token))
        value = logits[token] - logits.mean()
        assert graph.readout.value == pytest.approx(value.item(), abs=EXACT)
        total = graph.values[graph.sources].sum().item() + graph.readout.bias
        assert total == pytest.approx(value.item(), abs=EXACT)
        torch.testing.assert_close(graph.flows.sum(1), graph.values[graph.heads])
        outflow = graph.flows.sum(0) + graph.direct
        torch.testing.assert_close(outflow, graph.values, atol=EXACT, rtol=0)
        assert graph.imbalance() < EXACT


def brute_flows(held, direction, pos, stop):
    """What embeddings are worth, directly and through each head at its query first."""
    values, first = {}, {}
    for key in range(pos + 1):
        values[key] = 0.0
        for path, arrived in held.paths(held.embedding[key], key, 0, stop, pos):
            value = (arrived @ direction).item()
            values[key] += value
            place = (key, path[0][:2] if path else None)
            first[place] = first.get(place, 0.0) + value
    return values, first


@pytest.mark.parametrize(("kind", "family"), MODELS)
def test_flows_from_embeddings_are_sums_of_path_products(case, kind, family):
    held, frozen = case(kind, family, seed=2)
    graph = head_graph(frozen, logit_readout(frozen, 4))
    values, first = brute_flows(held, held.logit_direction(4), 4, 2)
    heads = {graph.writers[place]: row for row, place in enumerate(graph.heads.tolist())}
    for place, writer in enumerate(graph.writers):
        if writer.kind != "embedding":
            continue
        assert graph.values[place].item() == pytest.approx(values[writer.pos], abs=EXACT)
        for (key, target), expected in first.items():
            if key != writer.pos:
                continue
            if target is None:
                found = graph.direct[place]
            else:
                head, query = target
                row = heads[Writer("head", head.layer, query, head.index)]
                found = graph.flows[row, place]
            assert found.item() == pytest.approx(expected, abs=EXACT)


def test_flows_between_heads_are_sums_of_path_products(case):
    held, frozen = case("gpt2", "attention_only", layers=3)
    graph = head_graph(frozen, logit_readout(frozen, 1))
    written = frozen.attend_heads(0, frozen.streams[0])
    heads = {graph.writers[place]: row for row, place in enumerate(graph.heads.tolist())}
    source = graph.writers.index(Writer("head", 0, 2, 3))
    expected = {}
    for path, arrived in held.paths(written[3, 2], 2, 1, 3, 4):
        if path:
            head, query, _ = path[0]
            value = (arrived @ held.logit_direction(1)).item()
            expected[head, query] = expected.get((head, query), 0.0) + value
    for (head, query), value in expected.items():
        row = heads[Writer("head", head.layer, query, head.index)]
        assert graph.flows[row, source].item() == pytest.approx(value, abs=EXACT)


@pytest.mark.parametrize(("kind", "family"), MODELS)
def test_edges_of_attention_sum_to_heads_and_over_writers(case, kind, family):
    _, frozen = case(kind, family)
    for readout in (logit_readout(frozen, 4), logit_readout(frozen, 4, against=2, pos=2)):
        graph = head_graph(frozen, readout)
        edges = edge_values(frozen, readout)
        total = torch.zeros_like(edges)
        for row, place in zip(graph.flows, graph.heads.tolist(), strict=True):
            head = graph.writers[place]
            for source, flow in zip(graph.writers, row, strict=True):
                total[head.layer, head.index, head.pos, source.pos] += flow
        torch.testing.assert_close(edges, total, atol=EXACT, rtol=0)
        assert edges.abs().max() > 0.01
        assert edges.triu(1).abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "reads"), [("gpt2", "stream"), ("gpt2", "normalized"), ("neox", "stream")]
)
def test_the_graph_of_a_feature_sums_to_its_pre_activation(oracles, case, kind, reads):
    held, frozen = case(kind, "linear", layers=3, reads=reads)
    transcoder = oracles.exact_transcoder(held.model, reads)
    pre = transcoder.pre_activations(held.mlp_in)
    for layer, pos, feature in ((0, 2, 1), (1, 3, 4), (2, 4, 7)):
        readout = feature_readout(frozen, transcoder, layer, pos, feature)
        graph = head_graph(frozen, readout, transcoder)
        total = graph.values[graph.sources].sum().item() + readout.bias
        assert total == pytest.approx(pre[layer, pos, feature].item(), abs=EXACT)
        kinds = {writer.kind for writer in graph.writers}
        assert "mlp" not in kinds
        assert "feature" in kinds
        assert graph.imbalance() < EXACT


def test_an_exact_transcoder_leaves_no_error(oracles):
    model = oracles.split_model(0)
    held = oracles.Held(model, oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    transcoder = oracles.split_transcoder(model)
    graph = head_graph(frozen, logit_readout(frozen, 3), transcoder)
    size = {"error": 0.0, "feature": 0.0}
    for writer, value in zip(graph.writers, graph.values.tolist(), strict=True):
        if writer.kind in size:
            size[writer.kind] += abs(value)
    assert size["error"] < EXACT < 0.1 < size["feature"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_wired_induction_circuit_is_the_strongest_way(oracles, seed):
    found = oracles.wired("induction", seed)
    (mover,), (finder,) = found.heads["previous-token"], found.heads["induction"]
    tokens = torch.tensor([0, 7, 12, 9, 20, 7])
    held = oracles.Held(found.model, tokens)
    frozen = freeze(held.backend, tokens)
    graph = head_graph(frozen, logit_readout(frozen, 12))
    strongest = graph.strongest(0.9)
    # The finder at the last position says the token behind the earlier one, which stands at 2.
    assert strongest[0].source == Writer("head", finder.layer, 5, finder.index)
    assert strongest[0].target is None
    assert (strongest[1].source, strongest[1].target) == (
        Writer("embedding", -1, 2, 12),
        strongest[0].source,
    )
    assert mover not in {flow.source.head for flow in strongest[:2]}  # it tells where, not what


def test_strongest_edges_hold_the_share(case):
    _, frozen = case("llama", "attention_only")
    graph = head_graph(frozen, logit_readout(frozen, 4))
    direct, edges = graph.influences()
    everything = torch.cat([direct[None], edges]).sum().item()
    # Each path's influence is counted on each of its edges.
    assert direct.sum().item() == pytest.approx(1)
    reached = (direct + edges.sum(0))[graph.heads]
    torch.testing.assert_close(edges.sum(1), reached)  # heads pass on what reaches through them
    some = graph.strongest(0.5)
    held = sum(flow.influence for flow in some)
    assert 0.5 * everything <= held
    assert held - some[-1].influence < 0.5 * everything
    assert [flow.influence for flow in some] == sorted((f.influence for f in some), reverse=True)
    with pytest.raises(ValueError, match="share=0"):
        graph.strongest(0.0)


def test_too_many_flows_are_refused(case, monkeypatch):
    _, frozen = case("gpt2", "attention_only")
    monkeypatch.setattr("circuitkeep.graphs.heads._LARGEST", 10)
    with pytest.raises(ValueError, match="choose a shorter prompt"):
        head_graph(frozen, logit_readout(frozen, 4))


def test_a_pass_that_does_not_add_up_is_refused(case):
    from dataclasses import replace

    _, frozen = case("gpt2", "attention_only")
    wrong = replace(frozen, patterns=frozen.patterns * 1.1)
    with pytest.raises(ValueError, match="miss what the model computed"):
        head_graph(wrong, logit_readout(wrong, 4))
