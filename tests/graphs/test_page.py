"""The page of a graph as text: its data, its tables, what it says of an empty or odd graph."""

import json
import re
from dataclasses import replace

import pytest
import torch

from circuitkeep.circuits import Head
from circuitkeep.graphs import Node
from circuitkeep.graphs.extras import Extras, HeadEdge, Reason
from circuitkeep.graphs.features import Context, LogitEffects
from circuitkeep.graphs.influence import input_shares, prune
from circuitkeep.graphs.page import render_page
from circuitkeep.graphs.wording import explained

from .conftest import made_graph


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def test_the_data_are_the_kept_part_of_the_graph():
    graph = made_graph()
    pruned = prune(graph, 0.6, 0.8)
    data = data_of(render_page(graph, pruned))
    kept = pruned.nodes.nonzero()[:, 0].tolist()
    assert [(n["kind"], n["layer"], n["pos"], n["index"]) for n in data["nodes"]] == [
        (node.kind, node.layer, node.pos, node.index) for node in (graph.nodes[p] for p in kept)
    ]
    edges = data["edges"]
    ends = [(kept[t], kept[s]) for t, s in zip(edges["target"], edges["source"], strict=True)]
    assert set(ends) == {tuple(pair) for pair in pruned.edges.nonzero().tolist()}
    shares = input_shares(graph.edges)
    for (target, source), weight, share in zip(ends, edges["weight"], edges["share"], strict=True):
        assert weight == pytest.approx(graph.edges[target, source].item(), rel=1e-3)
        assert share == pytest.approx(shares[target, source].item(), rel=1e-3)
    # The most influential edge first, and sources before their targets, as paths need it.
    assert edges["score"] == sorted(edges["score"], reverse=True)
    assert all(s < t for t, s in zip(edges["target"], edges["source"], strict=True))


def test_what_else_is_known_reaches_its_node_and_edge():
    graph = made_graph()
    feature, logit = Node("feature", 1, 2, 7), graph.nodes[-2]
    words = {3: " the", 4: "\n", 5: "</script>"}
    extras = Extras(
        explained(graph, prune(graph)),
        {(feature, logit): [("L1H2", 0.25), ("no head", -0.5)]},
        {logit: [HeadEdge(Head(1, 2), 2, 1, 0.75, 0.5, Reason(2.0, (("token", 0.1),), ()))]},
        {(1, 7): [Context((3, 4), (0.0, 1.5))]},
        {(1, 7): LogitEffects(((5, 2.0),), ((3, -1.0),))},
        words.__getitem__,
    )
    page = render_page(graph, prune(graph, 1.0, 1.0), extras)
    data = data_of(page)
    assert data["features"]["1_7"] == {
        "contexts": [{"words": ["␣the", "↵"], "activations": [0.0, 1.5]}],
        "promoted": [["</script>", 2.0]],
        "suppressed": [["␣the", -1.0]],
    }
    ((edge, heads),) = data["heads"].items()
    assert heads == [["L1H2", 0.25], ["no head", -0.5]]
    assert data["nodes"][data["edges"]["source"][int(edge)]]["index"] == 7
    assert data["nodes"][data["edges"]["target"][int(edge)]]["word"] == "␣Lily"
    ((place, edges),) = data["head_edges"].items()
    reason = {"score": 2.0, "query": [["token", 0.1]], "key": []}
    at = {"head": "L1H2", "query": 2, "key": 1, "value": 0.75, "attention": 0.5}
    assert edges == [{**at, "reason": reason}]
    assert data["nodes"][int(place)]["word"] == "␣Lily"
    row = [">L1H2</th>", ">“␣likes” (2)</td>", ">“␣Lily” (1)</td>", ">50%</td>", ">+0.75</td>"]
    assert re.search("<td[^>]*".join(map(re.escape, row)), page)
    for name in ("completeness", "replacement", "errors by layer"):
        assert f">{name} <small>" in page


def test_the_tables_tell_the_strongest(capsys):
    graph = made_graph()
    edges = graph.edges.clone()
    logit, feature = len(graph) - 2, graph.places[Node("feature", 1, 2, 12)]
    edges[logit, feature] = -9.0
    values = graph.values + (edges - graph.edges).sum(1)
    page = render_page(replace(graph, edges=edges, values=values), prune(graph, 1.0, 1.0))
    (table,) = re.findall(r"Edges into “␣Lily”.*?</table>", page, re.S)
    first = re.search(r"<tbody>\s*<tr>(.*?)</tr>", table, re.S)[1]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", first)
    share = 9 / edges[logit].abs().sum().item()
    assert cells == ["L1 feature 12 at “␣likes” (2)", "−9.000", f"{share:.0%}"]
    assert '<td class="figure">45%</td>' in page


def test_nothing_is_loaded_and_texts_are_escaped():
    hostile = "<img src=x onerror=alert(1)>\"'&"
    page = render_page(made_graph((hostile,) * 3, (hostile, hostile)), prune(made_graph()))
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_a_graph_without_features_or_edges_has_a_page():
    graph = made_graph(features=0)
    nothing = replace(graph, edges=torch.zeros_like(graph.edges), values=graph.biases)
    page = render_page(nothing, prune(nothing))
    assert "without a transcoder" in page
    assert data_of(page)["edges"]["source"] == []


def test_numbers_that_are_none_are_refused():
    graph = made_graph()
    wrong = replace(graph, activations=graph.activations * float("nan"))
    with pytest.raises(ValueError, match="Out of range float values"):
        render_page(wrong, prune(graph))
