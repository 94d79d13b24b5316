"""What a circuit is held to: the checks that its file, its baseline and its thresholds ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuitkeep.checks.geometry import read_geometry_tests
from circuitkeep.checks.graphs import GraphTest, read_graph_test
from circuitkeep.circuits import Circuit, CircuitError, did_you_mean
from circuitkeep.probes import Probe, build_probe

ROWS = 128
SEEDS = (10_000, 10_001, 10_002)
RETENTIONS = ("identity", "causal", "behaviour")
RETAINED = 0.9
"""Of the base's value, where a base is given and nothing else is said."""
SETTINGS = ("rows", "seeds")
PER_ROLE = ("score", "replicates")
COMPARED = ("retention", "no_migration", "geometry", "graph")
KINDS = (*PER_ROLE, "causal", "behaviour", "faithfulness", *COMPARED)


@dataclass(frozen=True)
class Check:
    """One thing that is asked of a circuit.

    Attributes:
        kind: One of `KINDS`.
        part: The role, for ``score`` and ``replicates``; identity, causal or behaviour, for
            ``retention``; the manifold, for ``geometry``, and ``.place`` if it is about that; else
            empty.
        threshold: What the value must reach: a probability for ``score`` and ``replicates``, nats
            for ``causal``, the unit of the behaviour, a share for the others.
        source: Who asks for it: ``tests``, ``baseline``, ``thresholds`` or ``default``.
        at_least: In how many of the seeds and families, for ``replicates``; None for all.
    """

    kind: str
    part: str
    threshold: float
    source: str
    at_least: int | None = None

    @property
    def name(self) -> str:
        """Such as ``score[induction]`` or ``causal``."""
        return f"{self.kind}[{self.part}]" if self.part else self.kind

    @property
    def needs_base(self) -> bool:
        """Whether it compares with a base model."""
        return self.kind in COMPARED


@dataclass(frozen=True)
class Plan:
    """Every check of a circuit, and the rows that they are measured on.

    Attributes:
        circuit: Whose.
        probe: What makes the rows.
        rows: Held-out rows per seed.
        seeds: Of the rows.
        checks: In the order in which they are run.
        graph: How graphs are compared, if a check is about them.
    """

    circuit: Circuit
    probe: Probe
    rows: int
    seeds: tuple[int, ...]
    checks: tuple[Check, ...]
    graph: GraphTest | None = None

    def by_row(self) -> Plan:
        """Without the checks of graphs and geometry.

        A row of a graph costs a hundred times that of another check, and a manifold is no mean of
        rows, so that more of them do not narrow it as they do the others.
        """
        kept = tuple(check for check in self.checks if check.kind not in ("graph", "geometry"))
        return replace(self, checks=kept, graph=None)


def read_plan(
    circuit: Circuit, baseline: Mapping[str, float] | None = None, base: bool = False
) -> Plan:
    """The checks of a circuit.

    Each threshold is the one that the circuit's `tests` name; else the baseline's; for ``score``
    else that of the circuit's `thresholds`. Without any of them ``causal`` asks for more than 0
    nats, and what compares with a base for `RETAINED`; the others are left out. A check that
    `tests` set to null is left out, too.

    Args:
        circuit: With its `tests`: ``rows``, ``seeds``, and any of `KINDS`. ``score`` and
            ``retention`` map roles and kinds of retention to thresholds, ``replicates`` roles to
            in how many seeds and families, or ``all``; ``no_migration`` is true or null;
            ``graph`` maps ``overlap`` to a threshold, see `GraphTest` for the rest; ``geometry``
            maps manifolds to the share of their shape that is kept, or to that of ``shape`` and
            ``place``.
        baseline: Name of a check -> its threshold.
        base: Whether there is a base model to compare with; checks that need one are left out
            otherwise.

    Raises:
        CircuitError: For what is unknown, of the wrong kind or out of range.
    """
    for key in circuit.tests:
        known = (*SETTINGS, *KINDS)
        if key not in known:
            message = f"tests: unknown key {key!r}" + did_you_mean(str(key), known)
            raise CircuitError(message, "tests", str(key))
    probe = _probe(circuit)
    found = _Thresholds(circuit, baseline or {})
    replicates = _replicates(circuit)
    checks = []
    for role in circuit.roles:
        score = found.of("score", role.name)
        if score is None:
            continue
        checks.append(score)
        if role.name in replicates:
            checks.append(found.replicates(score, replicates[role.name]))
    for kind in ("causal", "behaviour", "faithfulness"):
        checks.append(found.of(kind, default=0.0 if kind == "causal" else None))
    for part in RETENTIONS:
        checks.append(found.of("retention", part, RETAINED))
    if _wants_no_migration(circuit):
        checks.append(Check("no_migration", "", 0.0, "default"))
    for part, threshold in read_geometry_tests(circuit).items():
        checks.append(Check("geometry", part, threshold, "tests"))
    graph = read_graph_test(circuit)
    if graph is not None:
        checks.append(Check("graph", "", graph[0], "tests"))
    return Plan(
        circuit,
        probe,
        _rows(circuit),
        _seeds(circuit),
        tuple(one for one in checks if one is not None and (base or not one.needs_base)),
        graph[1] if graph is not None and base else None,
    )


class _Thresholds:
    """Finds the threshold of a check, and who asks for it."""

    def __init__(self, circuit: Circuit, baseline: Mapping[str, float]) -> None:
        self._tests, self._baseline = circuit.tests, baseline
        self._thresholds = circuit.thresholds
        known = {"score": [role.name for role in circuit.roles], "retention": RETENTIONS}
        for kind, parts in known.items():
            asked = self._tests.get(kind, {})
            if asked is None:
                continue
            if not isinstance(asked, Mapping):
                message = f"tests: {kind!r} must map {', '.join(parts)} to numbers, got {asked!r}"
                raise CircuitError(message, "tests", kind)
            for part in asked:
                if part not in parts:
                    message = f"tests.{kind}: unknown key {part!r}" + did_you_mean(str(part), parts)
                    raise CircuitError(message, "tests", kind, str(part))

    def of(self, kind: str, part: str = "", default: float | None = None) -> Check | None:
        keys = (kind, part) if part else (kind,)
        asked: Any = self._tests
        for key in keys:
            if asked is None or key not in asked:
                break
            asked = asked[key]
        else:
            return None if asked is None else self._check(kind, part, asked, "tests", keys)
        if asked is None:  # the whole kind is switched off
            return None
        check = Check(kind, part, 0.0, "")
        if check.name in self._baseline:
            return self._check(kind, part, self._baseline[check.name], "baseline", keys)
        if kind == "score" and part in self._thresholds:
            return self._check(kind, part, self._thresholds[part], "thresholds", keys)
        return None if default is None else Check(kind, part, default, "default")

    def replicates(self, score: Check, at_least: int | None) -> Check:
        """With the threshold of the score; or one of its own, for fewer rows vary more."""
        threshold = score.threshold
        if score.source == "baseline":
            threshold = self._baseline.get(f"replicates[{score.part}]", threshold)
        return Check("replicates", score.part, threshold, score.source, at_least)

    @staticmethod
    def _check(kind: str, part: str, value: Any, source: str, keys: Sequence[str]) -> Check:
        name = ".".join(("tests", *keys))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise CircuitError(f"{name} must be a number, got {value!r}", "tests", *keys)
        if kind == "score" and not 0 < value < 1:
            message = f"{name} is an attention, between 0 and 1, got {value}"
            raise CircuitError(message, "tests", *keys)
        return Check(kind, part, float(value), source)


def _probe(circuit: Circuit) -> Probe:
    try:
        probe = build_probe(circuit.probe)
    except Exception as error:  # a probe may be anybody's, and is given what a file holds
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        blamed = _blamed(circuit.probe, str(error))
        raise CircuitError(f"probe: {kind}{error}", "probe", *blamed) from error
    if circuit.behaviour not in probe.behaviours:
        raise CircuitError(
            f"behaviour: {type(probe).__name__} cannot measure {circuit.behaviour!r}"
            + did_you_mean(circuit.behaviour, probe.behaviours),
            "behaviour",
        )
    circuit.check_labels(probe.labels)
    return probe


def _blamed(probe: Mapping[str, Any], message: str) -> tuple[str, ...]:
    """The argument that a probe's message speaks of first, to tell its line."""
    role, roles = re.match(r"role '([^']*)'", message), probe.get("targets")
    if role is not None and isinstance(roles, Mapping) and role[1] in roles:
        return ("targets", role[1])
    if repr(probe["_target_"]) in message:
        return ("_target_",)
    words = {key: rf"\b{re.escape(key.removesuffix('s'))}s?\b" for key in map(str, probe)}
    found = {key: re.search(word, message) for key, word in words.items()}
    places = {key: match.start() for key, match in found.items() if match is not None}
    return (min(places, key=places.__getitem__),) if places else ()


def _rows(circuit: Circuit) -> int:
    rows = circuit.tests.get("rows", ROWS)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 2:
        message = f"tests.rows must be at least 2 for an interval, got {rows!r}"
        raise CircuitError(message, "tests", "rows")
    return rows


def _seeds(circuit: Circuit) -> tuple[int, ...]:
    seeds = circuit.tests.get("seeds", SEEDS)
    whole = isinstance(seeds, Sequence) and all(
        type(seed) is int and 0 <= seed < 2**63 for seed in seeds
    )
    if not whole or not seeds or len(set(seeds)) != len(seeds):
        message = f"tests.seeds must list different whole numbers, got {seeds!r}"
        raise CircuitError(message, "tests", "seeds")
    return tuple(seeds)


def _replicates(circuit: Circuit) -> dict[str, int | None]:
    """Role -> in how many parts it must be found, None for all; roles may be missing."""
    asked = circuit.tests.get("replicates", {})
    if asked is None:
        return {}
    names = [one.name for one in circuit.roles]
    if not isinstance(asked, Mapping):
        message = f"tests: 'replicates' must map {', '.join(names)} to numbers, got {asked!r}"
        raise CircuitError(message, "tests", "replicates")
    for key, value in asked.items():
        where = ("tests", "replicates", str(key))
        if key not in names:
            message = f"tests.replicates: unknown key {key!r}" + did_you_mean(str(key), names)
            raise CircuitError(message, *where)
        if value not in ("all", None) and (type(value) is not int or value < 1):
            message = f"tests.replicates.{key} must be a number from 1, or all, got {value!r}"
            raise CircuitError(message, *where)
    every = {name: asked.get(name, "all") for name in names}
    return {name: None if n == "all" else n for name, n in every.items() if n is not None}


def _wants_no_migration(circuit: Circuit) -> bool:
    wanted = circuit.tests.get("no_migration", True)
    if wanted is not True and wanted is not None:
        message = f"tests.no_migration must be true, or null for no such check, got {wanted!r}"
        raise CircuitError(message, "tests", "no_migration")
    return wanted is True
