"""The tables of a graph: the strongest first, and tokens that look like markup are text."""

from io import StringIO

import pytest
from rich.console import Console

from circuitkeep.graphs.extras import Extras
from circuitkeep.graphs.features import LogitEffects
from circuitkeep.graphs.influence import input_shares, prune
from circuitkeep.graphs.terminal import tables
from circuitkeep.graphs.wording import explained, node_name

from .conftest import made_graph


def printed(graph, extras, top=3):
    console = Console(file=StringIO(), width=200)
    pruned = prune(graph, 1.0, 1.0)
    for table in tables(graph, pruned, extras, top):
        console.print(table)
    return console.file.getvalue()


def rows_under(text, heading):
    lines = text.split(heading)[1].splitlines()[2:]
    return lines[: next((at for at, line in enumerate(lines) if not line.strip()), len(lines))]


def test_the_strongest_come_first():
    graph = made_graph()
    pruned = prune(graph, 1.0, 1.0)
    logit = graph.nodes[-2]
    heads = {(graph.nodes[place], logit): [("L1H2", 0.25)] for place in range(len(graph))}
    effects = {
        (node.layer, node.index): LogitEffects(((5, 2.0), (6, 1.0)), ())
        for node in graph.nodes
        if node.kind == "feature"
    }
    extras = Extras(explained(graph, pruned), heads, {}, {}, effects, lambda token: f" w{token}")
    text = printed(graph, extras)
    shares = input_shares(graph.edges)[len(graph) - 2]
    edges = rows_under(text, "Strongest edges into “␣Lily”")
    assert len(edges) == 3
    for line, place in zip(edges, shares.argsort(descending=True).tolist(), strict=False):
        assert node_name(graph, place) in line
        assert f"{graph.edges[len(graph) - 2, place]:+.2f}" in line
        assert line.rstrip().endswith("L1H2 +0.25")
    influence = pruned.influence * graph.of_kind("feature")
    features = rows_under(text, "Most influential features")
    most = influence.argmax().item()
    assert node_name(graph, most) in features[0]
    # Of what is traced, which here has 0.45 + 0.225 of the probability.
    assert f" {influence[most] / 0.675:.0%} " in features[0]
    assert features[0].rstrip().endswith("␣w5 ␣w6")
    for score in extras.scores:
        assert f"{score.name}" in text.split("How much the graph explains")[1]


def test_what_is_not_known_has_no_column():
    graph = made_graph(features=0)
    text = printed(graph, Extras())
    assert "through" not in text
    assert "features" not in text.split("How much")[0]


@pytest.mark.parametrize("word", ["[bold]x[/bold]", "[/]", "\x1b[31m", "\n"])
def test_tokens_are_no_markup(word):
    graph = made_graph((word, word, word), (word, word))
    effects = {(1, 7): LogitEffects(((5, 2.0),), ())}
    text = printed(graph, Extras((), {}, {}, {}, effects, lambda token: word), 40)
    shown = {"\x1b[31m": "\\u001b[31m", "\n": "↵"}.get(word, word)
    assert f"token “{shown}” (0)" in text
    assert f"Strongest edges into “{shown}”" in text
    assert "\x1b" not in text
