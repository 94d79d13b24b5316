"""The strict YAML that circuits are written in; what is wrong is told with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from circuitkeep.circuits.circuit import Circuit, Head, Role
from circuitkeep.circuits.errors import CircuitError, did_you_mean
from circuitkeep.circuits.manifold import parse_manifolds
from circuitkeep.files import replacing

REQUIRED = ("name", "roles", "probe", "behaviour", "source")
KEYS = (*REQUIRED, "thresholds", "manifolds", "tests")


MOST_VALUES = 100_000
"""In a file with its aliases written out; nobody writes so many, and messages show values."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would keep the last.

    Whatever else it refuses, it says where.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count(node, {}, frozenset()) > MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"with its aliases it holds more than {MOST_VALUES} values",
                problem_mark=node.start_mark,
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            # Python has no text for longer numbers, and so could not say what is wrong with them.
            if isinstance(value, int) and value.bit_length() > 1000:
                raise ValueError("a whole number of more than 300 digits")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # What PyYAML runs into: days that there are not, `!!bool` of something else.
            problem = f"{node.tag} cannot be read: {type(error).__name__}: {error}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, ((place, _), key) in enumerate(zip(node.value, keys, strict=True)):
            if key in keys[:number]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=place.start_mark
                )
        return super().construct_mapping(node, deep)


def load_circuit(path: str | os.PathLike[str]) -> Circuit:
    """Read a circuit file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not YAML, or a key is unknown, missing or of the wrong type; the
            message names the file, the line and the nearest known key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no circuit file at {path}; `circuitkeep scan model.path=... save=FILE` writes one"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: this is not YAML: {_flat(error.problem)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: what is no text
        raise ValueError(f"{path}: this is not YAML: {_flat(error)}") from error
    with located(path):
        return parse_circuit(content)


def _count(node: yaml.Node, known: dict[int, int], within: frozenset[int]) -> int:
    """The values in a node, those that aliases stand for counted each time.

    Raises:
        MarkedYAMLError: If one holds itself.
    """
    if id(node) in within:
        raise yaml.MarkedYAMLError(
            problem="an alias stands within what it names", problem_mark=node.start_mark
        )
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        within |= {id(node)}
        known[id(node)] = 1 + sum(_count(one, known, within) for one in inside)
    return known[id(node)]


@contextmanager
def located(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell where in a circuit file it is that a `CircuitError` means.

    Raises:
        ValueError: In the place of the `CircuitError`, naming the file and the line.
    """
    try:
        yield
    except CircuitError as error:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
        raise ValueError(f"{path}:{_line(node, error.keys)}: {error}") from error


def _line(node: yaml.Node | None, keys: Sequence[str | int]) -> int:
    """Where the last of `keys` stands, or what is found of the way to it; from 1."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == key), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            found = (node.value[key], node.value[key]) if key < len(node.value) else None
        else:
            found = None
        if found is None:
            break
        place, node = found
        line = place.start_mark.line + 1
    return line


def parse_circuit(content: object) -> Circuit:
    """Build a `Circuit` from the mapping that a circuit file holds; see `load_circuit`.

    Raises:
        CircuitError: With the keys that lead to what is wrong.
    """
    if not isinstance(content, Mapping):
        raise CircuitError(f"a circuit file holds the keys {', '.join(REQUIRED)}")
    for key in content:
        if key not in KEYS:
            raise CircuitError(f"unknown key {key!r}" + did_you_mean(str(key), KEYS), str(key))
    for key in REQUIRED:
        if key not in content:
            raise CircuitError(f"the key {key!r} is missing")
    for key in ("name", "behaviour", "source"):
        if not isinstance(content[key], str) or not content[key].strip():
            raise CircuitError(f"{key!r} must be a non-empty text, got {content[key]!r}", key)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", content["name"]):
        raise CircuitError(
            f"the name {content['name']!r} is used in file names and log keys: letters, digits, "
            "'.', '_' and '-' only",
            "name",
        )
    probe = content["probe"]
    if not isinstance(probe, Mapping) or "_target_" not in probe:
        raise CircuitError("'probe' must be a mapping with the key '_target_'", "probe")
    thresholds = content.get("thresholds", {})
    if not isinstance(thresholds, Mapping):
        raise CircuitError(
            f"'thresholds' must map roles to numbers, got {thresholds!r}", "thresholds"
        )
    for role, value in thresholds.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            message = f"'thresholds' must map roles to numbers, got {value!r} for {role!r}"
            raise CircuitError(message, "thresholds", str(role))
    tests = content.get("tests", {})
    if not isinstance(tests, Mapping):
        raise CircuitError(f"'tests' must map checks to what they ask for, got {tests!r}", "tests")
    return Circuit(
        content["name"],
        _roles(content["roles"]),
        dict(probe),
        content["behaviour"],
        content["source"],
        {str(role): float(value) for role, value in thresholds.items()},
        dict(tests),
        parse_manifolds(content.get("manifolds", {})),
    )


def _roles(roles: object) -> tuple[Role, ...]:
    if not isinstance(roles, Mapping) or not roles:
        raise CircuitError(
            "'roles' must map each role to a list of heads, e.g. induction: [L5H1]", "roles"
        )
    found = []
    for role, heads in roles.items():
        if not isinstance(heads, list) or not heads:
            message = f"role {role!r} must list its heads, e.g. [L5H1, L5H5]"
            raise CircuitError(message, "roles", str(role))
        parsed = []
        for place, head in enumerate(heads):
            try:
                parsed.append(Head.parse(str(head)))
            except ValueError as error:
                raise CircuitError(f"role {role!r}: {error}", "roles", str(role), place) from error
        found.append(Role(str(role), tuple(parsed)))
    return tuple(found)


def dump_circuit(circuit: Circuit) -> str:
    """The YAML text that `load_circuit` reads back as an equal circuit."""
    content: dict[str, Any] = {
        "name": circuit.name,
        "source": circuit.source,
        "roles": {role.name: [str(head) for head in role.heads] for role in circuit.roles},
        "probe": dict(circuit.probe),
        "behaviour": circuit.behaviour,
    }
    manifolds = {manifold.name: manifold.to_mapping() for manifold in circuit.manifolds}
    optional = {"thresholds": circuit.thresholds, "manifolds": manifolds, "tests": circuit.tests}
    for key, value in optional.items():
        if value:
            content[key] = dict(value)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def save_circuit(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write a circuit file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(dump_circuit(circuit), encoding="utf-8")


def _flat(error: object) -> str:
    return " ".join(str(error).split())
