"""Where a run's logs lie, and whether it still writes."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from circuitkeep.watch.log import FILES

_NO_LOGS_IN = {"model", "checkpoints", "references", "wandb"}


def find_logs(run: Path) -> dict[str, Path]:
    """The folders in `run` and below that hold a log, the one last written first.

    They are called by their paths from `run` on. Nothing is there for a run that has not started.
    """
    found = []
    for folder, below, files in os.walk(run):
        below[:] = [name for name in below if name[0] != "." and name not in _NO_LOGS_IN]
        if set(files) & set(FILES):
            path = Path(folder)
            found.append((last_write(path), _counted(folder), path))
    return {path.relative_to(run).as_posix(): path for *_, path in sorted(found, reverse=True)}


def last_write(folder: Path) -> float:
    """When something was last written to a log, in seconds since 1970; 0 if there is none."""
    return max((_modified(folder / name) for name in FILES), default=0.0)


def state_of(folder: Path, run: Path, silent_s: float) -> dict[str, Any]:
    """Whether a run goes on, by its files.

    Returns:
        ``age_s``, how long ago it last wrote, and ``state``: ``finished`` if a model was saved
        since then beside the log, as ``circuitkeep train`` does in the end; ``silent`` if it has
        written nothing for `silent_s` seconds; ``running`` else.
    """
    written = last_write(folder)
    age_s = max(0.0, time.time() - written)
    above = [path for path in (folder, *folder.parents) if path == run or run in path.parents]
    if any(_modified(path / "model") >= written > 0 for path in above):
        state = "finished"
    else:
        state = "silent" if age_s > silent_s else "running"
    return {"state": state, "age_s": round(age_s, 1)}


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _counted(text: str) -> list[tuple[int, str]]:
    """For sorting: ``version_10`` stands behind ``version_9``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]
