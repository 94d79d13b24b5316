"""What the public frontend is given: its fields, its names of nodes, text as it was."""

import json
import re

import pytest

from circuitkeep.graphs import Node
from circuitkeep.graphs.frontend import (
    frontend_json,
    graph_metadata,
    paired,
    whole_characters,
)
from circuitkeep.graphs.influence import prune

from .conftest import made_graph

# As published: circuit_tracer/frontend/graph_models.py, and tests/fixtures/graphs of
# decoderesearch/circuit-tracer. Field, and what its values may be.
TEXT, NUMBER = str, (int, float)
METADATA = {
    "slug": TEXT,
    "scan": TEXT,
    "transcoder_list": list,
    "prompt_tokens": list,
    "prompt": TEXT,
    "node_threshold": (float, type(None)),
    "schema_version": int,
}
Q_PARAMS = {
    "pinnedIds": list,
    "supernodes": list,
    "linkType": TEXT,
    "clickedId": TEXT,
    "sg_pos": TEXT,
}
NODE = {
    "node_id": TEXT,
    "feature": int,
    "layer": TEXT,
    "ctx_idx": int,
    "feature_type": TEXT,
    "token_prob": NUMBER,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "jsNodeId": TEXT,
    "clerp": TEXT,
    "influence": (float, type(None)),
    "activation": (float, type(None)),
}
LINK = {"source": TEXT, "target": TEXT, "weight": NUMBER}
HARD = ("<s>", ' "q" </script>', "\n", "\t é🙂", "\udce2", " a\\b")


@pytest.fixture
def graph():
    return made_graph()


def found(graph, pruned=None, **changes):
    return frontend_json(graph, pruned or prune(graph, 1.0, 1.0), "graph", **changes)


def assert_fields(value, wanted, more=()):
    assert value.keys() == wanted.keys() | set(more)
    for name, kind in wanted.items():
        assert isinstance(value[name], kind), name


def test_the_fields_are_those_that_are_published(graph):
    content = json.loads(json.dumps(found(graph), allow_nan=False))
    assert list(content) == ["metadata", "qParams", "nodes", "links"]
    assert_fields(content["metadata"], METADATA, ("info", "pruning_settings"))
    assert_fields(content["qParams"], Q_PARAMS)
    for node in content["nodes"]:
        assert_fields(node, NODE)
    for link in content["links"]:
        assert_fields(link, LINK)


def test_the_ids_have_the_published_forms(graph):
    content = found(graph)
    forms = {
        "embedding": (r"E_{index}_{pos}", r"E_{index}-{pos}", "E"),
        "cross layer transcoder": (r"{layer}_{index}_{pos}", r"{layer}_{index}-0", "{layer}"),
        "mlp reconstruction error": (r"{layer}_-1_{pos}", r"{layer}_-1-{pos}", "{layer}"),
        "logit": (r"3_{index}_{pos}", r"L_{index}-{pos}", "3"),  # of a model of two layers
    }
    for one, node in zip(content["nodes"], graph.nodes, strict=True):
        wanted = [form.format(**vars(node)) for form in forms[one["feature_type"]]]
        assert [one["node_id"], one["jsNodeId"], one["layer"]] == wanted
        assert one["ctx_idx"] == node.pos
    ids = [one["node_id"] for one in content["nodes"]]
    assert len(set(ids)) == len(ids)
    for name in ids:  # what decodes them, splits them so
        assert re.fullmatch(r"(E|\d+)_-?\d+_\d+", name)
    assert {name for link in content["links"] for name in (link["source"], link["target"])} <= {
        *ids
    }


@pytest.mark.parametrize(
    ("layer", "index", "number"),
    # Of the published example: features 391, 14696 and 3121 of layers 0, 2 and 16.
    [(0, 391, 77027), (2, 14696, 108037647), (16, 3121, 4925074)],
)
def test_features_have_the_published_numbers(layer, index, number):
    assert paired(layer, index) == number


def test_what_a_node_carries(graph):
    place = graph.nodes.index(Node("feature", 1, 2, 7))
    one = found(graph, labels={(1, 7): "names"})["nodes"][place]
    assert one["activation"] == pytest.approx(graph.activations[place].item())
    assert (one["clerp"], one["feature"]) == ("names", paired(1, 7))
    error, *_ = (n for n in found(graph)["nodes"] if n["feature"] == -1)
    assert error["activation"] is None
    first, second = found(graph)["nodes"][-2:]
    assert first["clerp"] == 'Output " Lily" (p=0.450)'
    assert (first["is_target_logit"], second["is_target_logit"]) == (True, False)
    assert (first["feature"], first["influence"]) == (10, None)
    assert first["token_prob"] == pytest.approx(0.45)


def test_nodes_and_links_are_those_that_are_kept(graph):
    pruned = prune(graph, 0.4, 0.5)
    content = found(graph, pruned)
    assert len(content["nodes"]) == pruned.nodes.sum() < len(graph)
    ids = [one["node_id"] for one in found(graph)["nodes"]]
    wanted = [
        {"source": ids[source], "target": ids[target], "weight": graph.edges[target, source].item()}
        for target, source in pruned.edges.nonzero().tolist()
    ]
    assert content["links"] == wanted
    first = content["nodes"][0]
    assert first["influence"] == pytest.approx(pruned.cumulative[0].item())


def test_token_text_is_carried_unharmed():
    content = json.loads(json.dumps(found(made_graph(HARD, HARD[1:3]))))
    # Only a byte that is no character of its own becomes the sign for one.
    wanted = ["�" if word == "\udce2" else word for word in HARD]
    assert content["metadata"]["prompt_tokens"] == wanted
    assert content["metadata"]["prompt"] == "".join(wanted)
    assert content["nodes"][-2]["clerp"].startswith(f'Output "{HARD[1]}" (p=')


def test_bytes_of_one_character_join():
    assert whole_characters("\udcf0\udc9f\udc99\udc82") == "🙂"


def test_a_graph_replaces_its_namesake_in_the_list(graph, tmp_path):
    path = tmp_path / "graph-metadata.json"
    one = found(graph)
    listed = graph_metadata(one, path)
    assert listed == {"graphs": [one["metadata"]]}
    other = {**one, "metadata": {**one["metadata"], "slug": "other"}}
    path.write_text(json.dumps(listed))
    path.write_text(json.dumps(graph_metadata(other, path)))
    changed = {**one, "metadata": {**one["metadata"], "scan": "new"}}
    slugs = [(g["slug"], g["scan"]) for g in graph_metadata(changed, path)["graphs"]]
    assert slugs == [("other", "by hand"), ("graph", "new")]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no list of graphs"):
        graph_metadata(one, path)
