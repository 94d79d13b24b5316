"""Probes from the mappings that circuit files hold, and their one-line descriptions."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from circuitkeep.circuits import did_you_mean
from circuitkeep.probes.arguments import check_arguments
from circuitkeep.probes.base import Probe


def build_probe(spec: Mapping[str, Any]) -> Probe:
    """Make the probe that ``{_target_: circuitkeep.probes.RepeatedTokens, length: 32}`` names.

    Circuit files are passed between people, so one must not be able to run code: the target is
    called only if it is a `Probe` class, and no module outside circuitkeep is imported for it (a
    probe of your own works once your program has imported its module).

    Raises:
        ValueError: If the target is no importable `Probe`, or an argument is unknown, missing or
            of the wrong kind.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise ValueError(f"a probe must be a mapping with the key '_target_', got {spec!r}")
    probe_class = _resolve(spec["_target_"])
    arguments = {str(key): value for key, value in spec.items() if key != "_target_"}
    parameters = inspect.signature(probe_class).parameters
    for key in arguments:
        if key not in parameters:
            raise ValueError(
                f"{probe_class.__name__} has no argument {key!r}" + did_you_mean(key, parameters)
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ValueError(f"{probe_class.__name__} needs the argument {name!r}")
    check_arguments(probe_class, arguments)
    return probe_class(**arguments)


def _resolve(target: str) -> type[Probe]:
    module_name, _, name = target.rpartition(".")
    if module_name.split(".")[0] == "circuitkeep":
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(f"{target!r} names no module of circuitkeep") from error
    elif module_name in sys.modules:
        module = sys.modules[module_name]
    else:
        raise ValueError(
            f"{target!r} is not part of circuitkeep and its module is not imported; import it "
            "before reading the circuit if you trust it"
        )
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, Probe)) or inspect.isabstract(found):
        raise ValueError(
            f"{target!r} is not a Probe class" + did_you_mean(name, _probe_names(module))
        )
    return found


def _probe_names(module: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Probe) and not inspect.isabstract(value)
    ] or ["none in this module"]


def probe_fingerprint(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a probe's mapping, the same for any order of its keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(probe: Probe) -> str:
    """A probe in one line: its class and the settings that differ from their defaults."""
    settings = []
    for field in dataclasses.fields(probe) if dataclasses.is_dataclass(probe) else ():
        value = getattr(probe, field.name)
        if value != field.default:
            settings.append(f"{field.name}={_brief(value)}")
    return f"{type(probe).__name__}({', '.join(settings)})"


def _brief(value: object) -> str:
    if isinstance(value, Probe):
        return describe(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(str(key) for key in value) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > 3 or any(isinstance(item, str) and len(item) > 20 for item in value):
            return f"<{len(value)}>"
        return "[" + ", ".join(_brief(item) for item in value) + "]"
    return str(value)
