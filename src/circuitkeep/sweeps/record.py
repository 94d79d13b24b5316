"""What a folder of a sweep says about its run: ``run.json``, its name, and its config."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from circuitkeep.files import replacing

NAME = "run.json"
LONGEST = 120
"""Characters of a run's name; file systems take 255, and other folders lie around it."""


@dataclass(frozen=True)
class RunRecord:
    """One run of a sweep.

    Attributes:
        fingerprint: Of the resolved config, without where it is written.
        group: Of the same without the seed: runs that differ in nothing else share it.
        seed: Of the training.
        swept: What the run is named by: override key -> value, as typed.
        overrides: All of them.
        unregularized: Whether nothing held the circuit.
        status: ``running`` (or broken off), ``finished`` or ``failed``.
        error: Why it failed, in one sentence.
        metrics: After the last step: the task's own, and those of the monitor and capability.
        started: Time of the first start, ISO 8601.
        ended: Time of the end.
        seconds: Of all attempts that came to an end by themselves.
        versions: Of the packages that decide the result.
    """

    fingerprint: str
    group: str
    seed: int
    swept: Mapping[str, str]
    overrides: tuple[str, ...]
    unregularized: bool
    status: str
    started: str
    ended: str = ""
    seconds: float = 0.0
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What was swept beside the seed: ``penalty.weight=0.1``."""
        return ", ".join(f"{k}={v}" for k, v in self.swept.items() if k != "seed") or "all runs"


def write_record(folder: str | os.PathLike[str], record: RunRecord) -> None:
    """Write ``run.json`` whole or not at all."""
    with replacing(Path(folder) / NAME) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")


def read_record(folder: str | os.PathLike[str]) -> RunRecord | None:
    """The record of a run's folder; None if there is none.

    Raises:
        ValueError: If ``run.json`` is something else.
    """
    path = Path(folder) / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    known = {each.name for each in fields(RunRecord)}
    if not isinstance(content, dict) or not content.keys() <= known:
        raise ValueError(f"{path} is no record of a sweep's run; keep sweeps in folders of theirs")
    return RunRecord(**{**content, "overrides": tuple(content["overrides"])})


def swept_values(overrides: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """What each of `keys` was set to, sorted, the seed last.

    Args:
        overrides: Of one run: ``KEY=VALUE``, ``+KEY=VALUE`` or ``~KEY``; the last one counts.
        keys: Of what varies in the sweep.
    """
    found = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in keys:
            found[key] = value
    return dict(sorted(found.items(), key=lambda item: (item[0] == "seed", item[0])))


def run_name(swept: Mapping[str, str]) -> str:
    """A folder's name: ``penalty.weight-0.1+seed-2``.

    The same whatever else the sweep holds. Only signs that every file system takes and that need
    no quotes in an override; where others are left out, or the name would be long, a digest of
    all keeps names apart.
    """
    exact = "+".join(f"{key}-{value}" for key, value in swept.items())
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "_", exact)
    if safe == exact and len(safe) <= LONGEST:
        return safe
    return f"{safe[: LONGEST - 9]}+{fingerprint(dict(swept))[:8]}"


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 over plain values, whatever their order."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Key, value there, value here, wherever two configs differ; None where one lacks a key."""
    for key in {**there, **here}:
        before, now = there.get(key), here.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key}", before, now
