"""From a composed config to objects, where the commands share it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from circuitkeep.circuits import Circuit, did_you_mean, load_circuit, parse_circuit
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.cli.surroundings import config_directory
from circuitkeep.evals.harness import Harness
from circuitkeep.tasks import TextData


def find_circuit(name: str) -> Circuit:
    """A circuit file, or one that ships with circuitkeep by its name."""
    return load_circuit(circuit_path(name))


def circuit_path(name: str) -> Path:
    """The file of a circuit that ships with circuitkeep; another name is a path.

    Raises:
        ValueError: If it looks like a name, and nothing is called by it.
    """
    folder = config_directory() / "circuit"
    shipped = [path.stem for path in folder.glob("*.yaml") if path.stem not in ("file", "none")]
    if name in shipped:
        return folder / f"{name}.yaml"
    if not Path(name).suffix and not os.path.exists(name):
        raise ValueError(
            f"no circuit called {name!r} ships with circuitkeep" + did_you_mean(name, shipped)
        )
    return Path(name)


def construct(config: Mapping[str, Any], **given: Any) -> Any:
    """What ``config._target_`` makes of the config's arguments and of those only the program has.

    Not all as arguments of `instantiate`, which would turn dataclasses into configs.

    Raises:
        ValueError: For an argument that the target does not have, naming the nearest.
    """
    make = instantiate(config, _partial_=True)
    check_arguments(make.func, make.keywords)
    return make(**given)


def circuit_of(config: DictConfig) -> Circuit | None:
    """The circuit that the group ``circuit`` names: none, a file, or one that ships."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    if "path" in content:
        return None if content["path"] is None else load_circuit(content["path"])
    return parse_circuit(content)


def data_module(config: Mapping[str, Any], tokenizer: Any) -> Any:
    """A data module; one of text gets the model's tokenizer."""
    given = {"tokenizer": tokenizer} if "tokenizer" in config else {}
    return construct(config, **given)


def evaluation_data(config: DictConfig, tokenizer: Any, seed: int) -> dict[str, Any]:
    """The data modules of ``evals.datasets``, each evaluated on its validation rows.

    A plain path or hub name is text whose end (or a random part of its documents) is held out;
    a mapping with ``_target_`` is any other data module.
    """
    found = {}
    for name, dataset in config.datasets.items():
        if isinstance(dataset, Mapping):
            found[str(name)] = data_module(dataset, tokenizer)
        else:
            found[str(name)] = TextData(
                train=dataset,
                validation=config.validation,
                tokenizer=tokenizer,
                block_size=config.block_size,
                batch_size=config.batch_size,
                seed=seed,
            )
    return found


def harness_of(config: DictConfig) -> Harness | None:
    """The tasks of ``evals.harness``, those that ship included; None where none is named."""
    if not config.harness.tasks:
        return None
    own = config.harness.include_path or []
    folders = [str(config_directory() / "lm_eval"), *([own] if isinstance(own, str) else own)]
    return construct({**config.harness, "include_path": folders})
