"""Commands, their help, and one sentence with exit code 2 for every mistake of a user."""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from circuitkeep import __version__
from circuitkeep.circuits import did_you_mean
from circuitkeep.cli.surroundings import calm, config_directory, mendable

if TYPE_CHECKING:
    from circuitkeep.cli.jobs import Jobs

COMMANDS = {
    "demo": "train the embedded model, fine-tune it with and without a guard, and compare",
    "train": "fine-tune a model, guarding a circuit",
    "scan": "score every head of a model on the roles that a probe labels",
    "geometry": "describe heads as transforms of space, and manifolds between them",
    "survey": "lay the scans of several models side by side",
    "sweep": "report what the runs of a sweep (train -m) kept, and at what cost",
    "compare": "measure checkpoints side by side with their base model",
    "baseline": "pin what circuits score in files to review, check it, or update it",
    "test-power": "tell how often the tests of circuits are wrong, and what they detect",
    "nightly": "hold checkpoints to a suite of circuits, and to their own history",
    "transcode": "train a transcoder that stands for a model's MLPs, or measure one",
    "trace": "trace what a model says after a prompt back to its tokens, features and heads",
    "watch": "follow a running training in the browser",
    "wandb": "build a page at Weights & Biases of what a project's runs logged",
    "bench": "measure what circuitkeep claims, beside what one would use instead",
}
OPTIONS = ("-m", "--multirun", "-c", "--cfg", "-p", "--package", "--resolve", "-i", "--info")
"""Those of Hydra that make sense here."""
MULTIRUN = {"-m", "--multirun"}

_OPEN = ("evals.datasets.", "probe.aliases.")
_ACTIONS = {"baseline": ("write", "check", "update"), "transcode": ("train", "evaluate")}
"""What the first word after a command chooses."""
_FIRST = {"trace": "prompt", "watch": "run", "wandb": "project"}
"""The key that a first argument without a key is the value of."""


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
    try:
        run(command, overrides)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def run(command: str, overrides: Sequence[str]) -> None:
    """Compose the command's config with Hydra and call it.

    Everything that a user can get wrong ends in one sentence on stderr and exit code 2;
    ``HYDRA_FULL_ERROR=1`` shows the traceback too. A fault of circuitkeep keeps its traceback.
    """
    overrides = _choice(command, overrides)
    for override in overrides:
        if override.startswith("-") and override.split("=")[0] not in OPTIONS:
            _fail(f"there is no option {override}: settings are written KEY=VALUE")
    # Imported here, so that --help and --version answer at once.
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from circuitkeep.cli.mistakes import check_complete

    function = importlib.import_module(f"circuitkeep.cli.{command.replace('-', '_')}").run
    command_line, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR", "")
    one_sentence = nullcontext if full_error == "1" else _one_sentence

    # Hydra wants its options before the overrides.
    ordered = sorted(_shorthands(overrides), key=lambda text: "=" in text or text[0] == "~")
    sweep = None
    if command == "train" and MULTIRUN & set(ordered):
        with one_sentence():
            sweep, ordered = _sweep(ordered)

    @functools.wraps(function)
    def job(config: DictConfig) -> tuple[float, ...] | None:
        if sweep is not None:
            with _interruptible():
                return sweep(config)
        # As it was typed: Lightning starts the processes of further devices with it.
        sys.argv = command_line
        with one_sentence():
            folder = HydraConfig.get().runtime.output_dir
            if os.path.abspath(config.output) != folder:  # a job of a sweep, or a further process
                config.output = folder
            with _told_where(), tempfile.TemporaryFile(dir=folder):
                pass
            check_complete(config)
            function(config)
        return None

    # Hydra reads the overrides here, and nowhere else.
    sys.argv = [f"circuitkeep {command}", *ordered]
    # Without this, it would print its own kind of message and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    on_sigterm = signal.signal(signal.SIGTERM, lambda *_: _fail("stopped by SIGTERM", 143))
    try:
        with one_sentence(), calm(), nullcontext() if full_error == "1" else _told_where():
            hydra.main(str(config_directory()), command, "1.3")(job)()
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = command_line, full_error


def _sweep(ordered: Sequence[str]) -> tuple[Jobs, list[str]]:
    """What a sweep of `train` calls for each job, and its command line for Hydra."""
    from circuitkeep.cli.jobs import Ending, Jobs, swept_keys

    sweep = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    ending = f"+hydra.callbacks.ending={{_target_:{Ending.__module__}.Ending,sweep:'{sweep}'}}"
    # The jobs keep a record of their own, written only where no other run has one.
    added = [ending, "hydra.output_subdir=null"]
    optuna = any(text.startswith("hydra/sweeper=optuna") for text in ordered)
    if optuna and not any("max_failure_rate" in text for text in ordered):
        # One failed job stops no other.
        added.append("hydra.sweeper.max_failure_rate=1")
    jobs = Jobs(sweep, swept_keys(ordered), sys.argv[0])
    return jobs, [*ordered, *added]


@contextmanager
def _told_where() -> Iterator[None]:
    """For what comes before the command itself: only the output folder is written there."""
    from hydra.errors import HydraException

    try:
        yield
    except OSError as error:
        if isinstance(error, HydraException):  # some of them are both
            raise
        raise ValueError(
            f"cannot write the output folder ({error.strerror}: {error.filename}); set "
            "output=DIRECTORY"
        ) from error


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Print what the user got wrong, and exit with 2."""
    from circuitkeep.cli.mistakes import sentence

    try:
        with _interruptible():
            yield
    except mendable() as error:
        _fail(sentence(error))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C: Lightning turns it into an exit, inside a fit."""
    try:
        yield
    except SystemExit as stop:
        if stop.code == 1 and isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


def _choice(command: str, overrides: Sequence[str]) -> list[str]:
    """What a command does: ``bench scan`` is ``bench=scan``, ``watch DIR`` is ``watch run=DIR``."""
    first, *rest = overrides or [""]
    if command == "sweep":
        return _sweep_folder(overrides)
    for named, actions in _ACTIONS.items():
        if command == named and first in actions:
            return [f"action={first}", *rest]
        if command == named and not first.startswith(("-", "action=")):
            choice = ", ".join(f"`{action}`" for action in actions[1:-1])
            choice = ", ".join(filter(None, [f"`circuitkeep {named} {actions[0]}`", choice]))
            _fail(f"{choice} or `{actions[-1]}`? got {first!r}")
    # A prompt is any text that does not begin as an override does.
    bare = r"(?![-+~]|[\w./@:]+=)" if command == "trace" else r"[^-+~=][^=]*$"
    if command in _FIRST and overrides and (os.path.exists(first) or re.match(bare, first)):
        return [f"{_FIRST[command]}={_quoted(first)}", *rest]
    if re.fullmatch(r"\w[\w-]*", first) and (config_directory() / command).is_dir():
        return [f"{command}={first}", *rest]
    return list(overrides)


def _quoted(text: str) -> str:
    """A text as Hydra reads it: what would end the quotes or begin an interpolation is escaped."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return "'" + re.sub(r"(\\*)\$\{", r"\1\1\\${", escaped) + "'"


def _sweep_folder(overrides: Sequence[str]) -> list[str]:
    first, *rest = overrides or [""]
    if first != "report":
        _fail(f"what shall be done with the sweep? `circuitkeep sweep report DIR`, got {first!r}")
    if not any(text.startswith(("dir=", "-")) for text in rest) and (not rest or "=" in rest[0]):
        _fail("which sweep? `circuitkeep sweep report DIR`: what was its output=DIR")
    if rest and re.match(r"[^-+~=][^=]*$", rest[0]):
        folder = rest[0].replace("'", "\\'")
        return [f"dir='{folder}'", *rest[1:]]
    return rest


def _shorthands(overrides: Sequence[str]) -> list[str]:
    """What Hydra would want in more words.

    ``circuit=FILE.yaml`` names a file, beside the shipped ``circuit=NAME``; and a name of one's own
    is added to a mapping that the configs leave open.
    """
    found = []
    for override in overrides:
        if match := re.fullmatch(r"circuit=([^,]+\.ya?ml)", override):
            path = os.path.abspath(match[1]).replace("'", "\\'")
            found += ["circuit=file", f"circuit.path='{path}'"]
        elif override.startswith(_OPEN):
            found.append(f"++{override}")
        else:
            found.append(override)
    return found


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"circuitkeep: {message}", file=sys.stderr)
    sys.exit(code)


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
