"""A user's mistake in one sentence: what was wrong, the value, and the remedy."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuitkeep.circuits import did_you_mean

EXAMPLES = {
    "model.path": "model.path=DIRECTORY, or a hub name such as gpt2",
    "circuit.path": "circuit=FILE.yaml; `circuitkeep scan` writes one",
    "data.train": "data.train=FILE, a folder, or the name of a data set on the hub",
    "action": "`circuitkeep baseline write`, `check` or `update`",
    "base": "base=DIRECTORY",
    "project": "project=ENTITY/PROJECT, as in `circuitkeep wandb ENTITY/PROJECT`",
    "prompt": 'the text, as in `circuitkeep trace "Once upon a time"`',
    "run": "the run's output folder, as in `circuitkeep watch DIRECTORY`",
    "checkpoints": "checkpoints=[DIRECTORY,...] or checkpoints={NAME:DIRECTORY,...}",
    "circuits": "circuits=[FILE.yaml,...]",
    "scans": "scans=[A/scan.json,B/scan.json,...]; `circuitkeep scan` writes them",
}
_KINDS = {int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def check_complete(config: DictConfig) -> None:
    """Refuse a config in which a key that has no default (``???``) was not set.

    Raises:
        ValueError: Naming the first such key, with an example.
    """
    missing = OmegaConf.missing_keys(config)
    for key in (*EXAMPLES, *sorted(missing)):
        if key in missing:
            raise ValueError(f"{key} is not set: add {EXAMPLES.get(key, f'{key}=VALUE')}")


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that `function` does not have, and text where it wants a number.

    Raises:
        ValueError: Naming the argument, and the nearest one that there is.
    """
    parameters = inspect.signature(function).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except NameError:  # a type that is only imported for type checkers
        hints = {}
    for name, value in arguments.items():
        if name not in parameters and not anything:
            raise ValueError(
                f"{function.__name__} has no argument {name!r}" + did_you_mean(name, parameters)
            )
        kinds = _plain_kinds(hints.get(name))
        if kinds and not any(_is_a(value, kind) for kind in kinds):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise ValueError(f"{function.__name__}: {name} must be {wanted}, got {value!r}")


def _plain_kinds(hint: Any) -> tuple[type, ...]:
    """The types of a hint that is made of numbers, booleans and None only; else nothing."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return kinds if all(kind in _KINDS for kind in kinds) else ()


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def sentence(error: BaseException) -> str:
    """What to tell the user about `error`."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"there is no {group}={option}" + did_you_mean(option, error.options or ())
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read: write KEY=VALUE, and quote a value with special "
            "signs, as in \"KEY='VALUE'\""
        )
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        if isinstance(cause.parent_node, DictConfig) and cause.key is not None:
            return _unknown_key(cause.parent_node, str(cause.full_key), str(cause.key))
        return f"{_flat(error)}: {_flat(cause)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return _flat(error)


def _unknown_key(node: DictConfig, full_key: str, key: str) -> str:
    known = [str(name) for name in node if not re.fullmatch(r"_\w+_|hydra", str(name))]
    elsewhere = [path for path in _paths(node._get_root()) if path.endswith(f".{key}")]
    where = full_key[: -len(key)].rstrip(".")
    if "_target_" in node and key in inspect.signature(get_object(node._target_)).parameters:
        return f"{full_key} has no value yet: add it by +{full_key}=VALUE"
    return f"there is no key {full_key!r}" + (
        f"; did you mean {elsewhere[0]!r}?"
        if elsewhere
        else did_you_mean(key, known)
        if known
        else f": {where} has no keys of its own"
    )


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted path of every key, Hydra's own left out."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        for key in node:
            if prefix or key != "hydra":
                yield f"{prefix}{key}"
                yield from _paths(node._get_node(key), f"{prefix}{key}.")


def _flat(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        line for line in lines if not re.match(r"(full_key|object_type|Set the env|See http)", line)
    ]
    return " ".join(kept) or type(error).__name__
