"""Heads, roles and circuits."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from circuitkeep.circuits.errors import CircuitError, did_you_mean
from circuitkeep.circuits.manifold import Manifold

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
        tests: What `pytest` holds the circuit to; see `circuitkeep.checks.read_plan`.
        manifolds: What the geometry of the circuit is measured by; no two of one name.
    """

    name: str
    roles: tuple[Role, ...]
    probe: Mapping[str, Any] = field(hash=False)
    behaviour: str
    source: str
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)
    tests: Mapping[str, Any] = field(default_factory=dict, hash=False)
    manifolds: tuple[Manifold, ...] = ()

    def __post_init__(self) -> None:
        if not self.roles or not all(role.heads for role in self.roles):
            raise CircuitError(
                f"circuit {self.name!r}: every role needs at least one head", "roles"
            )
        names = [role.name for role in self.roles]
        for role in self.roles:
            where = f"circuit {self.name!r}, role {role.name!r}"
            if names.count(role.name) > 1:
                message = f"circuit {self.name!r}: role {role.name!r} stands twice"
                raise CircuitError(message, "roles", role.name)
            if len(set(role.heads)) != len(role.heads):
                raise CircuitError(f"{where}: a head is named twice", "roles", role.name)
        if self.behaviour not in BEHAVIOURS:
            raise CircuitError(
                f"circuit {self.name!r}: unknown behaviour {self.behaviour!r}"
                + did_you_mean(self.behaviour, BEHAVIOURS),
                "behaviour",
            )
        for role, threshold in self.thresholds.items():
            if role not in names:
                raise CircuitError(
                    f"circuit {self.name!r}: a threshold for {role!r}, which is none of its roles"
                    + did_you_mean(role, names),
                    *("thresholds", role),
                )
            if not 0 < threshold < 1:
                raise CircuitError(
                    f"circuit {self.name!r}, role {role!r}: the threshold must be in (0, 1), got "
                    f"{threshold}",
                    *("thresholds", role),
                )
        manifolds = [manifold.name for manifold in self.manifolds]
        for name in manifolds:
            if manifolds.count(name) > 1:
                message = f"circuit {self.name!r}: manifold {name!r} stands twice"
                raise CircuitError(message, "manifolds", name)

    @property
    def heads(self) -> tuple[Head, ...]:
        """All heads of all roles, sorted, each once."""
        return tuple(sorted({head for role in self.roles for head in role.heads}))

    def check_model(self, n_layers: int, n_heads: int) -> None:
        """Refuse heads and layers that the model does not have.

        Raises:
            CircuitError: Naming the first outside the model and the model's range.
        """
        for role in self.roles:
            for head in role.heads:
                if head.layer >= n_layers or head.index >= n_heads:
                    raise CircuitError(
                        f"circuit {self.name!r}, role {role.name!r}: head {head} is outside the "
                        f"model, whose heads run from L0H0 to L{n_layers - 1}H{n_heads - 1}",
                        *("roles", role.name, role.heads.index(head)),
                    )
        for manifold in self.manifolds:
            if manifold.layer >= n_layers:
                raise CircuitError(
                    f"circuit {self.name!r}, manifold {manifold.name!r}: layer {manifold.layer} is "
                    f"outside the model, whose layers run from 0 to {n_layers - 1}",
                    *("manifolds", manifold.name, "layer"),
                )

    def check_labels(self, labels: Iterable[str]) -> None:
        """Refuse roles that the probe does not label.

        Raises:
            ValueError: Naming the role and the nearest label.
        """
        labels = sorted(labels)
        for role in self.roles:
            if role.name not in labels:
                raise CircuitError(
                    f"circuit {self.name!r}: its probe does not label the role {role.name!r}"
                    + did_you_mean(role.name, labels),
                    *("roles", role.name),
                )

    def with_heads(self, heads: Mapping[str, Iterable[Head]], name: str) -> Circuit:
        """The same circuit under another name with other heads per role (for controls)."""
        roles = tuple(Role(role.name, tuple(heads[role.name])) for role in self.roles)
        found = Circuit(name, roles, self.probe, self.behaviour, self.source)
        return replace(found, manifolds=self.manifolds)

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
