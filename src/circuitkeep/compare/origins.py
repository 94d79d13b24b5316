"""What a checkpoint was trained on, as the config beside it tells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIGS = ("config.yaml", ".hydra/config.yaml")
"""Where the config of a run lies in its folder."""
PLAIN = "CausalLM"
"""The task that is not worth a word: predicting the data's next token."""


def trained_on(path: str | os.PathLike[str]) -> str:
    """The data of the run that wrote a checkpoint, and its task if that is no language modelling.

    ``tinyshakespeare.txt``, ``KeyValueMap``, ``KeyValuePreferences (DPO)``: a file's name where the
    data name one, else the data's class. Looked for in the folders above the checkpoint.

    Returns:
        Empty if no config says so.
    """
    for folder in list(Path(path).absolute().parents)[:3]:
        for name in CONFIGS:
            content = _read(folder / name)
            data, task = content.get("data"), content.get("task")
            if isinstance(data, Mapping) and isinstance(task, Mapping):
                return _said(data, task)
    return ""


def _said(data: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    file = data.get("train")
    name = Path(file).name if isinstance(file, str) else _last(data)
    kind = _last(task)
    return name if kind in (PLAIN, "") else f"{name} ({kind})"


def _last(settings: Mapping[str, Any]) -> str:
    return str(settings.get("_target_", "")).rpartition(".")[2]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # none, or not ours
        return {}
    return content if isinstance(content, Mapping) else {}
