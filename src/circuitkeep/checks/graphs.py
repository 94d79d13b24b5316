"""The check ``graph``: whether answers still come about along the same parts of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitkeep.capture import Backend
from circuitkeep.circuits import Circuit, CircuitError, did_you_mean
from circuitkeep.graphs.answers import Influences, answer_influences
from circuitkeep.probes import ProbeBatch
from circuitkeep.transcoders.storage import load_transcoder

ROWS = 8


@dataclass(frozen=True)
class GraphTest:
    """How the graphs of a model are compared with its base's.

    Attributes:
        transcoder: Folder of a transcoder of the base, whose features are compared; None to
            compare what heads carry, from key to query.
        rows: Prompts of each seed that are traced.
    """

    transcoder: Path | None
    rows: int = ROWS

    def beside(self, folder: Path) -> GraphTest:
        """With the transcoder's path taken from a folder.

        Raises:
            CircuitError: If there is no such transcoder.
        """
        if self.transcoder is None:
            return self
        where = folder / self.transcoder
        if not where.is_dir():
            message = f"tests.graph.transcoder: there is no folder {where}"
            raise CircuitError(message, "tests", "graph", "transcoder")
        return GraphTest(where, self.rows)


def read_graph_test(circuit: Circuit) -> tuple[float, GraphTest] | None:
    """The threshold and the rest of ``tests.graph``; None if it is not asked for.

    Raises:
        CircuitError: For what is unknown, of the wrong kind or out of range.
    """
    asked = circuit.tests.get("graph")
    if asked is None:
        return None
    known = ("overlap", "transcoder", "rows")
    if not isinstance(asked, Mapping):
        raise CircuitError(
            f"tests: 'graph' must map {', '.join(known)} to values, got {asked!r}", "tests", "graph"
        )
    for key in asked:
        if key not in known:
            message = f"tests.graph: unknown key {key!r}" + did_you_mean(str(key), known)
            raise CircuitError(message, "tests", "graph", str(key))
    overlap: Any = asked.get("overlap")
    rows = asked.get("rows", ROWS)
    if type(overlap) not in (int, float) or not 0 < overlap <= 1:
        raise CircuitError(
            "tests.graph.overlap must be a share above 0 and up to 1: how much of the influence "
            f"on the answers both models have in common; got {overlap!r}",
            *("tests", "graph", "overlap"),
        )
    if type(rows) is not int or rows < 2:
        raise CircuitError(
            f"tests.graph.rows must be at least 2 for an interval, got {rows!r}",
            *("tests", "graph", "rows"),
        )
    where = asked.get("transcoder")
    if where is not None and not isinstance(where, str):
        raise CircuitError(
            f"tests.graph.transcoder must be a folder, or null to compare heads, got {where!r}",
            *("tests", "graph", "transcoder"),
        )
    return float(overlap), GraphTest(None if where is None else Path(where), rows)


def graph_evidence(
    test: GraphTest, backend: Backend, rows: Sequence[ProbeBatch]
) -> tuple[Influences | None, ...]:
    """What influences the answers, prompt by prompt; see `answer_influences`.

    Raises:
        ValueError: If the transcoder is of another model, or the model cannot be traced.
    """
    transcoder = None
    if test.transcoder is not None:
        transcoder = load_transcoder(test.transcoder).to(backend.device)
    return tuple(
        found
        for batch in rows
        for found in answer_influences(backend, batch, test.rows, transcoder)
    )
