"""Whether what a circuit file gives a probe is of the kinds that the probe's hints name."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def check_arguments(probe_class: type, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are of another kind than the class's hints say.

    Raises:
        ValueError: Naming the argument and what it should be.
    """
    try:
        hints = typing.get_type_hints(probe_class.__init__)
    except NameError:  # a type that is only imported for type checkers
        return
    for name, value in arguments.items():
        if not _fits(value, hints.get(name, Any)):
            raise ValueError(
                f"{probe_class.__name__}: {name} must be {_said(hints[name])}, got {value!r}"
            )


def _fits(value: object, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Sequence:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return False
        return all(_fits(entry, parts[0]) for entry in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(v, parts[1]) for v in value.values())
    if hint in (int, float):
        kinds = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool)
    # What other hints mean, the class itself must check. (Python 3.11 made a type of Any.)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _said(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_said(part) for part in parts))
    if origin is Sequence:
        return f"a list, of each {_said(parts[0])}"
    if origin is Mapping:
        return "a mapping" if parts[1] is Any else f"a mapping, to {_said(parts[1])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
