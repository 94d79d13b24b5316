"""wandb offline in tests, and its own reader: ``wandb leet inspect``."""

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Run:
    """What wandb's reader finds in a run.

    Attributes:
        history: An entry per call of ``log``, by key.
        summary: By key.
        config: What was set, by path.
        artifacts: Records by name, version after version.
        alerts: Records.
        files: The folder that paths in the history begin in.
    """

    history: list
    summary: dict
    config: dict
    artifacts: dict
    alerts: list
    files: Path

    def series(self, key):
        return [(e["trainer/global_step"], e[key]) for e in self.history if key in e]


@pytest.fixture(scope="session")
def wandb_offline(tmp_path_factory):
    """Sets wandb up to run without a word, a login or a network; ends whatever it began."""
    settings = {"MODE": "offline", "SILENT": "true", "DISABLE_GIT": "true"}
    settings["DATA_DIR"] = settings["CACHE_DIR"] = str(tmp_path_factory.mktemp("wandb"))

    def begin(patch):
        import wandb

        for name, value in settings.items():
            patch.setenv(f"WANDB_{name}", value)
        yield
        wandb.teardown()
        gc.collect()

    return begin


@pytest.fixture(scope="session")
def read_wandb():
    """Reads the folder of an offline run."""

    def read(path):
        def inspect(*options):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, path]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout

        run = Run([], json.loads(inspect("--summary"))["summary"], {}, {}, [], path / "files")
        for line in inspect().splitlines():
            record = json.loads(line)
            content = record[record["type"]]
            if record["type"] == "history":
                run.history.append(_nested(content["item"]))
            elif record["type"] == "config":
                run.config |= content["update"]
            elif record["type"] == "artifact":
                run.artifacts.setdefault(content["name"], []).append(content)
            elif record["type"] == "alert":
                run.alerts.append(content)
        return run

    return read


def _nested(item):
    """The reader joins nested keys by dots; W&B's own media are what is nested here."""
    found = {}
    for key, value in item.items():
        outer, dot, inner = key.rpartition(".")
        if dot and f"{outer}._type" in item:
            found.setdefault(outer, {})[inner] = value
        else:
            found[key] = value
    return found
