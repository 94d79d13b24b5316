"""An attribution graph as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from circuitkeep.graphs.extras import Extras
from circuitkeep.graphs.graph import Graph
from circuitkeep.graphs.influence import Pruned, input_shares
from circuitkeep.graphs.wording import first_logit, influences, node_name, position_name, strongest
from circuitkeep.pages import number, percent, signed
from circuitkeep.pages.attention import visible


def tables(graph: Graph, pruned: Pruned, extras: Extras, top: int) -> Iterator[Table]:
    """What may come next and where it comes from, and how much of that is explained.

    Args:
        graph: The whole graph.
        pruned: What is kept of it.
        extras: What else is known.
        top: Rows of a table.
    """
    yield _outputs(graph)
    yield _inputs(graph, pruned, extras, top)
    if extras.head_edges:
        yield _head_edges(graph, extras, top)
    yield _nodes(graph, pruned, top)
    if (pruned.nodes & graph.of_kind("feature")).any():
        yield _features(graph, pruned, extras, top)
    table = _table("\nHow much the graph explains", "", "", left=2)
    for score in extras.scores:
        table.add_row(score.name, score.text)
    yield table


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """A plain table; the first `left` columns, and what is told of heads and tokens, are words."""
    table = Table(title=Text(title), title_justify="left", box=None, show_header=any(columns))
    for place, column in enumerate(columns):
        is_text = place < left or column in ("through", "promotes", "at", "from")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _outputs(graph: Graph) -> Table:
    table = _table("What may come next", "token", "probability", "logit over mean")
    for place, word in enumerate(graph.logit_words, first_logit(graph)):
        probability, value = graph.probabilities[place].item(), graph.values[place].item()
        table.add_row(Text(visible(word)), percent(probability), signed(value, 2))
    return table


def _inputs(graph: Graph, pruned: Pruned, extras: Extras, top: int) -> Table:
    heads = extras.heads
    first = first_logit(graph)
    columns = ("from", "logits", "of its inputs", *(("through",) if heads else ()))
    table = _table(f"\nStrongest edges into “{visible(graph.logit_words[0])}”", *columns)
    shares = input_shares(graph.edges)[first] * pruned.edges[first]
    for source, share in strongest(shares, top):
        passed = heads.get((graph.nodes[source], graph.nodes[first]), ())
        through = ", ".join(f"{name} {signed(value, 2)}" for name, value in passed)
        value = signed(graph.edges[first, source].item(), 2)
        cells = (value, percent(share), *((through,) if heads else ()))
        table.add_row(Text(node_name(graph, source)), *cells)
    return table


def _head_edges(graph: Graph, extras: Extras, top: int) -> Table:
    table = _table(
        f"\nWhat heads bring “{visible(graph.logit_words[0])}”",
        "head",
        "logits",
        "attention",
        "at",
        "from",
    )
    for edge in extras.head_edges[graph.nodes[first_logit(graph)]][:top]:
        at, start = (Text(position_name(graph, pos)) for pos in (edge.query, edge.key))
        table.add_row(str(edge.head), signed(edge.value, 2), percent(edge.attention), at, start)
    return table


def _nodes(graph: Graph, pruned: Pruned, top: int) -> Table:
    table = _table("\nMost influential nodes", "node", "influence")
    others = influences(graph, pruned) * (pruned.nodes & ~graph.of_kind("logit"))
    for place, share in strongest(others, top):
        table.add_row(Text(node_name(graph, place)), percent(share))
    return table


def _features(graph: Graph, pruned: Pruned, extras: Extras, top: int) -> Table:
    effects = extras.effects
    columns = ("feature", "influence", "activation", *(("promotes",) if effects else ()))
    table = _table("\nMost influential features", *columns)
    features = influences(graph, pruned) * (pruned.nodes & graph.of_kind("feature"))
    for place, share in strongest(features, top):
        node = graph.nodes[place]
        cells = [Text(node_name(graph, place)), percent(share)]
        cells.append(number(graph.activations[place].item()))
        if known := effects.get((node.layer, node.index)):
            words = (visible(extras.word(token)) for token, _ in known.promoted[:5])
            cells.append(Text(" ".join(words)))
        table.add_row(*cells)
    return table
