"""Where a checkpoint is: in a folder, on the hub, or an artifact that is downloaded first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PREFIX = "wandb:"
MODEL_FILES = ("config.json", "adapter_config.json", ".metadata")
"""One of them tells a directory that `load_checkpoint` reads."""


def check_paths(checkpoints: Mapping[str, str]) -> None:
    """Refuse local paths at which there is nothing, and artifacts without a version.

    Raises:
        FileNotFoundError: Naming the checkpoint.
        ValueError: For an artifact that is not written as it should be.
    """
    for name, path in checkpoints.items():
        if path.startswith(PREFIX):
            if path.removeprefix(PREFIX).count("/") != 2 or ":" not in path.rpartition("/")[2]:
                raise ValueError(
                    f"checkpoint {name!r}: {path!r} is no artifact; write "
                    "wandb:ENTITY/PROJECT/ARTIFACT:ALIAS"
                )
            continue
        local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".ckpt")
        if local and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"checkpoint {name!r}: there is nothing at {path}")


@contextmanager
def fetched(path: str) -> Iterator[tuple[str, str]]:
    """Where a checkpoint can be loaded from, and what it is called.

    An artifact is downloaded to a temporary folder that is deleted afterwards; it is called by its
    version, whatever alias was asked for.

    Raises:
        ValueError: If the artifact cannot be had, or holds no model.
    """
    if not path.startswith(PREFIX):
        yield path, path
        return
    with tempfile.TemporaryDirectory(prefix="circuitkeep-") as folder:
        version = _download(path.removeprefix(PREFIX), folder)
        yield _model_in(Path(folder), path), f"{path.rpartition(':')[0]}:{version}"


def _download(name: str, folder: str) -> str:
    # Only who asks for artifacts waits for it to load.
    import wandb
    from wandb.errors import Error

    try:
        artifact = wandb.Api().artifact(name)
        # Nights of models would fill the cache.
        artifact.download(root=folder, skip_cache=True)
    except (Error, ValueError, OSError) as error:
        raise ValueError(f"cannot download the artifact {name}: {error}") from error
    return str(artifact.version)


def _model_in(folder: Path, name: str) -> str:
    """The directory of a model in an artifact, or its one Lightning checkpoint."""
    for place in (folder, *sorted(one for one in folder.iterdir() if one.is_dir())):
        if any((place / file).is_file() for file in MODEL_FILES):
            return os.fspath(place)
    checkpoints = sorted(folder.rglob("*.ckpt"))
    if len(checkpoints) != 1:
        raise ValueError(
            f"the artifact {name} holds no model directory and {len(checkpoints)} .ckpt files; "
            "save one of either"
        )
    return os.fspath(checkpoints[0])
