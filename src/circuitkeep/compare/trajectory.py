"""Checkpoints of one training, in the order of its steps."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
INSIDE = ("config.json", "adapter_config.json", ".metadata")
"""What a model's directory, one of adapters, and a checkpoint in shards hold."""


def step_of(name: str) -> int | None:
    """The training step that a name tells: after the word ``step``, or else its last number.

    ``epoch=0-step=300.ckpt``, ``checkpoint-300`` and ``300`` are all step 300.
    """
    found = re.findall(r"steps?\D?(\d+)", name) or re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def in_order(checkpoints: Mapping[str, Value]) -> dict[int, tuple[str, Value]]:
    """Step -> name and path, by step.

    Raises:
        ValueError: If a name tells no step, or two tell the same.
    """
    found: dict[int, tuple[str, Value]] = {}
    for name, path in checkpoints.items():
        step = step_of(name)
        if step is None:
            raise ValueError(
                f"checkpoint {name!r} tells no training step: name it as in "
                "checkpoints={step300: PATH}, or leave trajectory=true out"
            )
        if step in found:
            raise ValueError(
                f"checkpoints {found[step][0]!r} and {name!r} are both of step {step}; a "
                "trajectory is one training"
            )
        found[step] = (name, path)
    return dict(sorted(found.items()))


def checkpoints_in(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Name -> path of all in a run's folder that is a checkpoint and tells its step.

    That leaves out ``last.ckpt``, which is one of the others again.

    Raises:
        ValueError: If there is none.
    """
    found = {
        entry.name: str(entry)
        for entry in sorted(Path(folder).iterdir())
        if (entry.suffix == ".ckpt" or any((entry / file).is_file() for file in INSIDE))
        and step_of(entry.name) is not None
    }
    if not found:
        raise ValueError(
            f"{os.fspath(folder)} holds no checkpoint that tells its step, such as step=300.ckpt "
            "or checkpoint-300"
        )
    return found
