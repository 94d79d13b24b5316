"""Commands, their help, and one sentence with exit code 2 for every mistake of a user."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from circuitkeep import __version__
from circuitkeep.circuits import did_you_mean

COMMANDS = {
    "demo": "train the embedded model, fine-tune it with and without a guard, and compare",
    "train": "fine-tune a model, guarding a circuit",
    "scan": "score every head of a model on the roles that a probe labels",
    "compare": "measure checkpoints side by side with their base model",
}


def config_directory() -> Path:
    """Where the configs are: in the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``circuitkeep COMMAND [OVERRIDE ...]``; exits with 2 after a mistake of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        sys.exit(0)
    command, *overrides = arguments
    if command not in COMMANDS:
        _fail(f"unknown command {command!r}{did_you_mean(command, COMMANDS)}")
    if {"-h", "--help"} & set(overrides):
        print(_command_help(command))
        sys.exit(0)
    run(command, overrides)


def run(command: str, overrides: Sequence[str]) -> None:
    """Compose the command's config with Hydra and call it.

    Everything that a user can get wrong ends in one sentence on stderr and exit code 2;
    ``HYDRA_FULL_ERROR=1`` shows the traceback too. A fault of circuitkeep keeps its traceback.
    """
    # Imported here, so that --help and --version answer at once.
    import hydra
    from hydra.errors import HydraException
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from circuitkeep.capture.models import quiet

    user_errors = (ValueError, OSError, HydraException, OmegaConfBaseException)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would otherwise print its own kind of message and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "Checkpoint directory",
        "LeafSpec",
        "'set_vital'",
    ):
        warnings.filterwarnings("ignore", f".*{message}")
    sys.argv = [f"circuitkeep {command}", *_with_circuit_files(overrides)]
    function = importlib.import_module(f"circuitkeep.cli.{command}").run
    expected = (*user_errors, MisconfigurationException)

    @functools.wraps(function)
    def job(config: DictConfig) -> None:
        try:
            function(config)
        except expected as error:
            if wants_traceback:
                raise
            _fail(_sentence(error))

    wrapped = hydra.main(
        version_base="1.3", config_path=str(config_directory()), config_name=command
    )
    try:
        wrapped(job)()
    except expected as error:
        if wants_traceback:
            raise
        _fail(_sentence(error))


def _with_circuit_files(overrides: Sequence[str]) -> list[str]:
    """Let ``circuit=FILE.yaml`` name a file, beside the shipped ``circuit=NAME``."""
    found = []
    for override in overrides:
        match = re.fullmatch(r"circuit=([^,]+\.ya?ml)", override)
        if match is None:
            found.append(override)
        else:
            path = os.path.abspath(match[1]).replace("'", "\\'")
            found += ["circuit=file", f"circuit.path='{path}'"]
    return found


def _sentence(error: BaseException) -> str:
    from hydra.errors import ConfigCompositionException, InstantiationException

    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return f"{_flat(error)} ({_flat(error.__cause__)})"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return _flat(error)


def _flat(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        line for line in lines if not re.match(r"(full_key|object_type|Set the env|See http)", line)
    ]
    return " ".join(kept) or type(error).__name__


def _fail(message: str) -> None:
    print(f"circuitkeep: {message}", file=sys.stderr)
    sys.exit(2)


def _command_help(command: str) -> str:
    """What the command does, its keys with their comments, and the choices of every group."""
    directory = config_directory()
    text = (directory / f"{command}.yaml").read_text(encoding="utf-8")
    keys = text.split("\nhydra:", 1)[0].strip()
    lines = [f"usage: circuitkeep {command} [KEY=VALUE ...]", "", keys]
    for group in re.findall(r"^  - (\w+): ", text, re.MULTILINE):
        lines += ["", f"{group}=..."]
        for option in sorted((directory / group).glob("*.yaml")):
            comments = re.findall(r"^# (?!@)(.+)", option.read_text(encoding="utf-8"), re.MULTILINE)
            lines.append(f"  {option.stem:24} {comments[0]}")
    lines += [
        "",
        f"`circuitkeep {command} --cfg job` prints every key with its value; -m with",
        "KEY=A,B,... runs one job per combination.",
    ]
    return "\n".join(lines)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: circuitkeep COMMAND [KEY=VALUE ...]",
            "",
            "Fine-tune a language model without losing the circuits it already has.",
            "",
            *lines,
            "",
            "`circuitkeep COMMAND --help` lists the command's keys; every KEY=VALUE is a Hydra",
            "override, and -m runs one job per combination of comma-separated values.",
        ]
    )
