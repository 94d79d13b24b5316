"""pytest's plugin: circuit files are tests of a model.

It is loaded in every run of pytest where circuitkeep is installed: until a circuit is to be tested
it imports nothing heavy and does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SUFFIX = ".circuit.yaml"
OPTIONS = {
    "model": "model that circuit files are tested on: a directory, hub name or checkpoint",
    "base": "base model that it is compared with",
    "tokenizer": "where the tokenizer is, if not with the base or the model",
}
STRICT = "a check that is inconclusive fails"


@dataclass(frozen=True)
class Asked:
    """What a run asks for; None for what it does not name."""

    model: str | None
    base: str | None
    tokenizer: str | None
    strict: bool


ASKED = pytest.StashKey[Asked]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and keys of the same names for the ini file."""
    group = parser.getgroup("circuitkeep", "unit tests for circuits")
    for name, said in OPTIONS.items():
        group.addoption(f"--circuit-{name}", metavar="PATH", help=said)
        parser.addini(f"circuit_{name}", said, default="")
    group.addoption("--circuit-strict", action="store_true", help=STRICT)
    parser.addini("circuit_strict", STRICT, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Read what is asked for.

    Raises:
        pytest.UsageError: If circuits are to be tested and no model is named, or there is none.
    """
    config.addinivalue_line("markers", "circuit: a check of a circuit file, by circuitkeep")
    paths = {name: _path(config, name) for name in OPTIONS}
    strict = bool(config.getoption("circuit_strict") or config.getini("circuit_strict"))
    config.stash[ASKED] = Asked(strict=strict, **paths)
    if paths["model"] is None:
        named = [arg for arg in config.args if arg.partition("::")[0].endswith(SUFFIX)]
        given = [name for name in OPTIONS if config.getoption(f"circuit_{name}")]
        wants = named or [f"--circuit-{name}" for name in given]
        if wants:
            raise pytest.UsageError(
                f"{wants[0]}: no model to test; add --circuit-model=PATH, or circuit_model = PATH "
                "to the ini file"
            )
    for name, path in paths.items():
        local = path is not None and path.startswith((".", "/", "~"))
        if path is not None and local and not Path(path).expanduser().exists():
            raise pytest.UsageError(f"--circuit-{name}: there is nothing at {path}")


def _path(config: pytest.Config, name: str) -> str | None:
    """As given; what an ini file names is looked for beside that file first."""
    given = config.getoption(f"circuit_{name}")
    if given:
        return given
    written = config.getini(f"circuit_{name}")
    if not written:
        return None
    beside = None if config.inipath is None else config.inipath.parent / written
    return str(beside) if beside is not None and beside.exists() else written


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which models are tested."""
    asked = config.stash[ASKED]
    if asked.model is None:
        return None
    base = f", base {asked.base}" if asked.base else ""
    return f"circuits: model {asked.model}{base}{', strict' * asked.strict}"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A circuit file is collected where there is a model to test."""
    if not file_path.name.endswith(SUFFIX) or parent.config.stash[ASKED].model is None:
        return None
    from circuitkeep.pytest_plugin.items import CircuitFile

    return CircuitFile.from_parent(parent, path=file_path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a circuit's checks on one worker: they share their forward passes."""
    if config.stash[ASKED].model is None or config.getoption("dist") != "load":
        return None
    from circuitkeep.pytest_plugin.scheduling import CircuitScheduling

    return CircuitScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the outcome of a check on its report."""
    report = yield
    add = getattr(item, "add_outcome", None)
    if add is not None and report.when == "call":
        add(report)
    return report


def pytest_report_teststatus(report: Any) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """A check that is inconclusive is counted as such."""
    if report.when == "call" and report.skipped and hasattr(report, "circuit"):
        return "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
    return None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """All checks in one table, if one did not pass or ``-v`` is given."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if hasattr(report, "circuit") and report.when == "call"
    ]
    if reports and (config.get_verbosity() > 0 or not all(r.passed for r in reports)):
        from circuitkeep.pytest_plugin.summary import print_summary

        print_summary(terminalreporter, [report.circuit for report in reports])


@pytest.fixture(scope="session")
def circuit_model(request: pytest.FixtureRequest) -> Any:
    """The model that ``--circuit-model`` names, ready to be measured: a `Backend`."""
    if request.config.stash[ASKED].model is None:
        pytest.skip("no model to test: name one by --circuit-model")
    from circuitkeep.pytest_plugin.items import examination

    return examination(request.session).backend


@pytest.fixture(scope="session")
def circuit_base(request: pytest.FixtureRequest) -> Any:
    """The model that ``--circuit-base`` names: a `Backend`."""
    base = request.config.stash[ASKED].base
    if base is None:
        pytest.skip("no base to compare with: name one by --circuit-base")
    from circuitkeep.pytest_plugin.items import load_base

    return load_base(base)


@pytest.fixture
def assert_circuit(request: pytest.FixtureRequest, circuit_model: Any) -> Callable[..., Any]:
    """``assert_circuit("file.circuit.yaml")``: see `circuitkeep.checks.assert_circuit`.

    The file is looked for beside the test; models, tokenizer and strictness are the run's own.
    """
    from circuitkeep.checks import assert_circuit
    from circuitkeep.pytest_plugin.items import examination

    asked = request.config.stash[ASKED]
    base = None if asked.base is None else request.getfixturevalue("circuit_base")
    tokenizer = examination(request.session).tokenizer

    def check(circuit: str | os.PathLike[str], strict: bool = asked.strict) -> Any:
        __tracebackhide__ = True
        path = request.path.parent / circuit
        return assert_circuit(circuit_model, path, base, tokenizer=tokenizer, strict=strict)

    return check
