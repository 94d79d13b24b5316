"""Manifolds: where the values of a variable lie in a model's residual stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from circuitkeep.circuits.errors import CircuitError, did_you_mean


@dataclass(frozen=True)
class Manifold:
    """The mean residual stream of every value of a variable, in order.

    Attributes:
        name: Used in log keys and reports.
        variable: A whole number that the circuit's probe knows at some positions, or that can be
            told from any text: see `circuitkeep.probes.TEXT_VARIABLES`.
        layer: After which the residual stream is read; -1 is what enters the first layer.
        values: The first and the last value that count.
        step: So many neighbouring values make a class.
        dimensions: Of its subspace: that many principal components.
    """

    name: str
    variable: str
    layer: int
    values: tuple[int, int]
    step: int = 1
    dimensions: int = 6

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise CircuitError(
                f"the name {self.name!r} of a manifold is used in log keys: letters, digits, '_' "
                "and '-' only",
                *("manifolds", self.name),
            )
        for key, least in (("layer", -1), ("step", 1), ("dimensions", 1)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                message = f"a whole number from {least}, got {value!r}"
                raise CircuitError(f"{self._where}: {key} must be {message}", *self._keys(key))
        first, last = self.values
        if not 0 <= first < last:
            raise CircuitError(
                f"{self._where}: values are the first and the last that count, such as [5, 60], "
                f"got {list(self.values)}",
                *self._keys("values"),
            )
        # As many points span one dimension less.
        if self.dimensions >= self.classes:
            raise CircuitError(
                f"{self._where}: its {self.classes} classes of values span {self.classes - 1} "
                f"dimensions at most, got dimensions={self.dimensions}",
                *self._keys("dimensions"),
            )

    @property
    def classes(self) -> int:
        """How many; the last may hold fewer values."""
        return (self.values[1] - self.values[0]) // self.step + 1

    def value_of(self, number: int) -> float:
        """The middle of the values that class `number` holds."""
        return sum(self._ends(number)) / 2

    def says(self, number: int) -> str:
        """The values that class `number` holds: ``7``, or ``65 to 69``."""
        first, last = self._ends(number)
        return str(first) if first == last else f"{first} to {last}"

    def _ends(self, number: int) -> tuple[int, int]:
        first = self.values[0] + number * self.step
        return first, min(first + self.step - 1, self.values[1])

    @property
    def _where(self) -> str:
        return f"manifold {self.name!r}"

    def _keys(self, key: str) -> tuple[str, ...]:
        return ("manifolds", self.name, key)

    def to_mapping(self) -> dict[str, object]:
        """What `parse_manifolds` reads under the manifold's name."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "name"}
        return {**found, "values": list(self.values)}


_KEYS = tuple(field.name for field in fields(Manifold) if field.name != "name")
_REQUIRED = ("variable", "layer", "values")


def parse_manifolds(content: object) -> tuple[Manifold, ...]:
    """The manifolds of a circuit file.

    Raises:
        CircuitError: With the keys that lead to what is wrong.
    """
    if not isinstance(content, Mapping):
        raise CircuitError(
            "'manifolds' must map names to what they are, e.g. count: {variable: position, "
            f"layer: 1, values: [1, 30]}}; got {content!r}",
            "manifolds",
        )
    return tuple(_parse(str(name), value) for name, value in content.items())


def _parse(name: str, content: object) -> Manifold:
    keys = ("manifolds", name)
    if not isinstance(content, Mapping):
        known = ", ".join(_KEYS)
        raise CircuitError(f"manifold {name!r} must map {known} to values, got {content!r}", *keys)
    for key in content:
        if key not in _KEYS:
            raise CircuitError(
                f"manifold {name!r}: unknown key {key!r}" + did_you_mean(str(key), _KEYS),
                *keys,
                str(key),
            )
    for key in _REQUIRED:
        if key not in content:
            raise CircuitError(f"manifold {name!r}: the key {key!r} is missing", *keys)
    variable, values = content["variable"], content["values"]
    if not isinstance(variable, str) or not variable:
        message = f"manifold {name!r}: variable must be a name, got {variable!r}"
        raise CircuitError(message, *keys, "variable")
    pair = isinstance(values, list | tuple) and len(values) == 2
    if not pair or any(type(value) is not int for value in values):
        raise CircuitError(
            f"manifold {name!r}: values are the first and the last that count, such as [5, 60], "
            f"got {values!r}",
            *keys,
            "values",
        )
    for key in ("layer", "step", "dimensions"):
        if type(content.get(key, 1)) is not int:
            message = f"manifold {name!r}: {key} must be a whole number, got {content[key]!r}"
            raise CircuitError(message, *keys, key)
    return Manifold(**{**content, "name": name, "values": (values[0], values[1])})
