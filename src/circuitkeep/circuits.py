"""Heads, roles and circuits, and the strict YAML they are written in."""

from __future__ import annotations

import difflib
import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from circuitkeep.files import replacing

BEHAVIOURS = ("accuracy", "advantage_nats", "logit_difference")
"""How a circuit's behaviour may be scored; `circuitkeep.evals.behaviour` computes them."""


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, written ``L5H1``; both numbers count from zero."""

    layer: int
    index: int

    def __post_init__(self) -> None:
        if self.layer < 0 or self.index < 0:
            raise ValueError(
                f"head numbers count from 0, got layer {self.layer}, index {self.index}"
            )

    def __str__(self) -> str:
        return f"L{self.layer}H{self.index}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``L5H1`` (or the literature's ``5.1``, quoted).

        Raises:
            ValueError: If `text` is neither.
        """
        match = re.fullmatch(r"L(\d+)H(\d+)|(\d+)\.(\d+)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a head; write layer and index as 'L5H1'")
        layer, index = (part for part in match.groups() if part is not None)
        return cls(int(layer), int(index))


@dataclass(frozen=True)
class Role:
    """What some heads of a circuit do; the circuit's probe labels where they should attend."""

    name: str
    heads: tuple[Head, ...]


@dataclass(frozen=True)
class Circuit:
    """A named set of heads in roles, the probe that exercises it and the behaviour it implements.

    Attributes:
        name: Used in log keys and reports.
        roles: Each with at least one head; no head stands twice in one role.
        probe: ``{_target_: <Probe class>, **arguments}``; see `circuitkeep.probes.build_probe`.
        behaviour: One of `BEHAVIOURS`.
        source: Citation of whoever named these heads, or the command that found them.
        thresholds: Role -> what the score of each of its heads should not fall below on held-out
            rows; a scan suggests them. Roles may be missing.
    """

    name: str
    roles: tuple[Role, ...]
    probe: Mapping[str, Any] = field(hash=False)
    behaviour: str
    source: str
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.roles or not all(role.heads for role in self.roles):
            raise ValueError(f"circuit {self.name!r}: every role needs at least one head")
        names = [role.name for role in self.roles]
        repeated = {n for n in names if names.count(n) > 1}
        if repeated:
            raise ValueError(f"circuit {self.name!r}: role {repeated.pop()!r} stands twice")
        for role in self.roles:
            if len(set(role.heads)) != len(role.heads):
                raise ValueError(
                    f"circuit {self.name!r}, role {role.name!r}: a head is named twice"
                )
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(
                f"circuit {self.name!r}: unknown behaviour {self.behaviour!r}"
                + did_you_mean(self.behaviour, BEHAVIOURS)
            )
        for role, threshold in self.thresholds.items():
            if role not in names:
                raise ValueError(
                    f"circuit {self.name!r}: a threshold for {role!r}, which is none of its roles"
                    + did_you_mean(role, names)
                )
            if not 0 < threshold < 1:
                raise ValueError(
                    f"circuit {self.name!r}, role {role!r}: the threshold must be in (0, 1), got "
                    f"{threshold}"
                )

    @property
    def heads(self) -> tuple[Head, ...]:
        """All heads of all roles, sorted, each once."""
        return tuple(sorted({head for role in self.roles for head in role.heads}))

    def check_model(self, n_layers: int, n_heads: int) -> None:
        """Refuse heads that the model does not have.

        Raises:
            ValueError: Naming the first head outside the model and the model's range.
        """
        for role in self.roles:
            for head in role.heads:
                if head.layer >= n_layers or head.index >= n_heads:
                    raise ValueError(
                        f"circuit {self.name!r}, role {role.name!r}: head {head} is outside the "
                        f"model, whose heads run from L0H0 to L{n_layers - 1}H{n_heads - 1}"
                    )

    def check_labels(self, labels: Iterable[str]) -> None:
        """Refuse roles that the probe does not label.

        Raises:
            ValueError: Naming the role and the nearest label.
        """
        labels = sorted(labels)
        for role in self.roles:
            if role.name not in labels:
                raise ValueError(
                    f"circuit {self.name!r}: its probe does not label the role {role.name!r}"
                    + did_you_mean(role.name, labels)
                )

    def with_heads(self, heads: Mapping[str, Iterable[Head]], name: str) -> Circuit:
        """The same circuit under another name with other heads per role (for controls)."""
        roles = tuple(Role(role.name, tuple(heads[role.name])) for role in self.roles)
        return Circuit(name, roles, self.probe, self.behaviour, self.source)

    def with_random_heads(self, n_heads: int, seed: int) -> Circuit:
        """A control: the same circuit with as many other heads in each layer, drawn at random.

        A head that stands in several roles is replaced by one head in all of them. Where a layer
        has too few others, named heads make up the number.

        Args:
            n_heads: Of the model, per layer.
            seed: The same seed draws the same heads.
        """
        drawn = random.Random(seed)
        instead: dict[Head, Head] = {}
        for layer in sorted({head.layer for head in self.heads}):
            named = [head for head in self.heads if head.layer == layer]
            others = sorted({Head(layer, i) for i in range(n_heads)} - set(named))
            chosen = drawn.sample(others, min(len(named), len(others)))
            chosen += drawn.sample(named, len(named) - len(chosen))
            instead |= dict(zip(named, chosen, strict=True))
        heads = {role.name: [instead[head] for head in role.heads] for role in self.roles}
        return self.with_heads(heads, f"{self.name}-random-{seed}")

    def with_all_heads(self, n_layers: int, n_heads: int) -> Circuit:
        """A control: the same circuit with every head of the model in every role."""
        every = [Head(layer, index) for layer in range(n_layers) for index in range(n_heads)]
        return self.with_heads({role.name: every for role in self.roles}, f"{self.name}-all")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def load_circuit(path: str | os.PathLike[str]) -> Circuit:
    """Read a circuit file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not YAML, or a key is unknown, missing or of the wrong type; the
            message names the file and the nearest known key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no circuit file at {path}; `circuitkeep scan model.path=... save=FILE` writes one"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return parse_circuit(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_circuit(content: object) -> Circuit:
    """Build a `Circuit` from the mapping that a circuit file holds; see `load_circuit`."""
    required = ("name", "roles", "probe", "behaviour", "source")
    known = (*required, "thresholds")
    if not isinstance(content, Mapping):
        raise ValueError(f"a circuit file holds the keys {', '.join(required)}")
    for key in content:
        if key not in known:
            raise ValueError(f"unknown key {key!r}" + did_you_mean(str(key), known))
    for key in required:
        if key not in content:
            raise ValueError(f"the key {key!r} is missing")
    for key in ("name", "behaviour", "source"):
        if not isinstance(content[key], str) or not content[key].strip():
            raise ValueError(f"{key!r} must be a non-empty text, got {content[key]!r}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", content["name"]):
        raise ValueError(
            f"the name {content['name']!r} is used in file names and log keys: letters, digits, "
            "'.', '_' and '-' only"
        )
    roles = content["roles"]
    if not isinstance(roles, Mapping) or not roles:
        raise ValueError("'roles' must map each role to a list of heads, e.g. induction: [L5H1]")
    parsed = []
    for role, heads in roles.items():
        if not isinstance(heads, list) or not heads:
            raise ValueError(f"role {role!r} must list its heads, e.g. [L5H1, L5H5]")
        parsed.append(Role(str(role), tuple(Head.parse(str(head)) for head in heads)))
    probe = content["probe"]
    if not isinstance(probe, Mapping) or "_target_" not in probe:
        raise ValueError("'probe' must be a mapping with the key '_target_'")
    thresholds = content.get("thresholds", {})
    if not isinstance(thresholds, Mapping) or not all(
        isinstance(value, int | float) for value in thresholds.values()
    ):
        raise ValueError(f"'thresholds' must map roles to numbers, got {thresholds!r}")
    return Circuit(
        content["name"],
        tuple(parsed),
        dict(probe),
        content["behaviour"],
        content["source"],
        {str(role): float(value) for role, value in thresholds.items()},
    )


def dump_circuit(circuit: Circuit) -> str:
    """The YAML text that `load_circuit` reads back as an equal circuit."""
    content = {
        "name": circuit.name,
        "source": circuit.source,
        "roles": {role.name: [str(head) for head in role.heads] for role in circuit.roles},
        "probe": dict(circuit.probe),
        "behaviour": circuit.behaviour,
    }
    if circuit.thresholds:
        content["thresholds"] = dict(circuit.thresholds)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def save_circuit(circuit: Circuit, path: str | os.PathLike[str]) -> None:
    """Write a circuit file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(dump_circuit(circuit), encoding="utf-8")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest of `known`, or all of them if none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
