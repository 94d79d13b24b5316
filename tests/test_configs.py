"""The shipped configs: documented, composable, and without a key that nobody reads."""

import inspect
import re
import shutil
from pathlib import Path

import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from circuitkeep.callbacks.wandb_logger import SteadyWandbLogger
from circuitkeep.circuits import load_circuit
from circuitkeep.cli.application import COMMANDS
from circuitkeep.cli.surroundings import config_directory

CONFIGS = config_directory()
FILES = sorted(CONFIGS.rglob("*.yaml"))
CIRCUITS = [p for p in FILES if p.parent.name == "circuit" and "\nroles:" in p.read_text()]
# What a target's **kwargs are passed on to, and what `train` takes out before the target sees it.
PASSED_ON = {SteadyWandbLogger: (WandbLogger, wandb.init)}
TAKEN_OUT = {Trainer: {"resume"}}


def undocumented(path):
    """Keys with a value of their own and no comment in the line before."""
    text = path.read_text()
    lines = text.splitlines()

    def look(node):
        for key, value in node.value:
            if key.value == "defaults" or re.fullmatch(r"_\w+_", key.value):
                continue
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                yield from look(value)
            elif not lines[key.start_mark.line - 1].lstrip().startswith("#"):
                yield f"{path.name}: {key.value}"

    node = yaml.compose(text)
    return [] if node is None else list(look(node))


def groups(directory, command):
    """The groups of a command's defaults."""
    defaults = yaml.safe_load((directory / f"{command}.yaml").read_text())["defaults"]
    return [name for item in defaults if isinstance(item, dict) for name in item if " " not in name]


def composed(directory, command, *overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base="1.3"):
        return OmegaConf.to_container(compose(command, list(overrides)))


def unknown_keys(config, where=""):
    """Keys beside ``_target_`` that the target has no argument for."""
    if isinstance(config, list):
        for number, item in enumerate(config):
            yield from unknown_keys(item, f"{where}[{number}]")
    if not isinstance(config, dict):
        return
    if config.get("_target_") not in (None, "???"):
        target = get_object(config["_target_"])
        parameters = inspect.signature(target).parameters
        known = {"_target_", "_convert_", *parameters, *TAKEN_OUT.get(target, ())}
        for further in PASSED_ON.get(target, ()):
            known |= inspect.signature(further).parameters.keys()
        yield from (f"{where}.{key}" for key in config if key not in known)
    for key, value in config.items():
        yield from unknown_keys(value, f"{where}.{key}" if where else key)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p not in CIRCUITS], ids=lambda p: str(p.relative_to(CONFIGS))
)
def test_every_key_is_documented(path):
    assert path.read_text().startswith("#")
    assert undocumented(path) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_composes_and_has_no_unknown_key(command):
    assert list(unknown_keys(composed(CONFIGS, command))) == []
    for group in groups(CONFIGS, command):
        options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
        assert options
        for option in options:
            config = composed(CONFIGS, command, f"{group}={option}")
            assert list(unknown_keys(config)) == [], f"{command} {group}={option}"


def test_every_group_belongs_to_a_command():
    used = {group for command in COMMANDS for group in groups(CONFIGS, command)}
    # Tasks for lm-evaluation-harness, which reads them itself.
    used.add("lm_eval")
    assert used == {path.name for path in CONFIGS.iterdir() if path.is_dir()}


@pytest.mark.parametrize("name", composed(CONFIGS, "demo")["runs"])
def test_the_runs_of_the_demo_compose(name):
    overrides = composed(CONFIGS, "demo")["runs"][name]
    config = composed(CONFIGS, "train", "experiment=demo", *overrides)
    assert list(unknown_keys(config)) == []


@pytest.mark.parametrize("path", CIRCUITS, ids=lambda p: p.stem)
def test_a_shipped_circuit_loads_under_its_name(path):
    assert load_circuit(path).name == path.stem


def test_there_are_circuits():
    assert CIRCUITS


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("trainer/default", "# Steps.\nmax_step: 3\n", "trainer.max_step"),
        ("logger/wandb", "  # Team.\n  entitty: null\n", "logger.wandb.entitty"),
        ("callbacks/default", "  # Rows.\n  row: 3\n", "callbacks.progress.row"),
        ("penalty/patterns_only", "  # How.\n  weigths: {}\n", "penalty.loss.weigths"),
    ],
)
def test_a_wrong_key_is_found(tmp_path, name, line, wrong):
    shutil.copytree(CONFIGS, tmp_path, dirs_exist_ok=True)
    group, option = name.split("/")
    with (tmp_path / f"{name}.yaml").open("a") as file:
        file.write(line)
    config = composed(tmp_path, "train", f"{group}={option}")
    assert list(unknown_keys(config)) == [wrong]


@pytest.mark.parametrize("text", ["# A.\na: 1\nb: 2\n", "# A.\na: 1\nc:\n  b: [1]\n"])
def test_an_undocumented_key_is_found(tmp_path, text):
    path = Path(tmp_path / "x.yaml")
    path.write_text(text)
    assert undocumented(path) == ["x.yaml: b"]
