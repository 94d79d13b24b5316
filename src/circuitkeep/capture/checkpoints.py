"""Loading what a training leaves behind: model directories, adapters, Lightning's checkpoints."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import PreTrainedModel

from circuitkeep.capture.models import first_line, load_model


def load_checkpoint(path: str | os.PathLike[str], base: str | os.PathLike[str]) -> PreTrainedModel:
    """Load a trained model.

    Args:
        path: A model directory; a hub name, also ``name@revision``; a directory of peft adapters;
            or a Lightning checkpoint, a ``.ckpt`` file or the directory of one in shards (FSDP).
        base: Where the architecture comes from, and what adapters are put on: checkpoints and
            adapters hold no more than weights.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If it is not a checkpoint of this architecture.
    """
    local = Path(path).expanduser()
    if (local / "adapter_config.json").is_file():
        return _adapted(local, base)
    if (local / ".metadata").is_file():
        return _from_shards(local, base)
    if not os.fspath(path).endswith(".ckpt"):
        return load_model(path)
    if not local.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    model = load_model(base)
    try:
        state = torch.load(local, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise ValueError(f"{path} is not a Lightning checkpoint: {first_line(error)}") from error
    prefix = _prefix(state, model, path)
    _put(model, {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}, path, base)
    return model


def _adapted(path: Path, base: str | os.PathLike[str]) -> PreTrainedModel:
    """The base with adapters merged into its weights."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(
            f"{path} holds adapters, which need peft: pip install 'circuitkeep[lora]'"
        ) from error
    model: Any = load_model(base)
    try:
        # Keys that do not fit are warned of and left out; the weights would be the base's then.
        adapted = PeftModel.from_pretrained(model, str(path))
        found = adapted.load_adapter(str(path), "default")
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"the adapters in {path} do not fit {base}: {first_line(error)}"
        ) from error
    if wrong := [*found.unexpected_keys, *(k for k in found.missing_keys if "lora" in k)]:
        raise ValueError(f"the adapters in {path} do not fit {base}: {min(wrong)}")
    return adapted.merge_and_unload()  # type: ignore[return-value]


def _from_shards(path: Path, base: str | os.PathLike[str]) -> PreTrainedModel:
    model = load_model(base)
    reader = _Reader(path)
    try:
        there = {
            key: item
            for key, item in reader.read_metadata().state_dict_metadata.items()
            if isinstance(item, TensorStorageMetadata)
        }
    except (pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint in shards: {first_line(error)}") from error
    prefix = _prefix(there, model, path)
    wanted = model.state_dict()
    own = {key[len(prefix) :]: item for key, item in there.items() if key.startswith(prefix)}
    found = {}
    for name, item in own.items():
        like = wanted.get(name, torch.empty(0))
        if name in wanted and item.size != like.shape:
            raise ValueError(
                f"{path} does not fit the architecture of {base}: size mismatch for {name}, "
                f"{tuple(item.size)} for {tuple(like.shape)}"
            )
        found[prefix + name] = torch.empty(item.size, dtype=like.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the intent is to load in a single process")
        load(found, storage_reader=_Reader(path), no_dist=True)
    _put(model, {key[len(prefix) :]: value for key, value in found.items()}, path, base)
    return model


class _Reader(FileSystemReader):
    """Reads the index of a checkpoint in shards without running what may be hidden in it.

    The shards themselves torch reads with ``weights_only=True``.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As the class it derives from, which unpickles whatever is there."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    _KNOWN: ClassVar = {
        "torch": {"Size", "device"},
        "torch.serialization": {"_get_layout"},
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
        "torch.distributed.checkpoint.metadata": {
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
            "_MEM_FORMAT_ENCODING",
        },
        "pathlib": {"PosixPath", "WindowsPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only what such an index is made of."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in self._KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"its index names {module}.{name}")
        return super().find_class(module, name)


def _prefix(keys: Collection[str], model: PreTrainedModel, path: str | os.PathLike[str]) -> str:
    """What stands before the model's own names among `keys`."""
    anchor = next(iter(model.state_dict()))
    prefixes = [key[: -len(anchor)] for key in keys if f".{key}".endswith(f".{anchor}")]
    if len(prefixes) > 1:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in prefixes)
        raise ValueError(
            f"{path} holds {len(prefixes)} models of this architecture ({names}); save the one "
            "you mean as a model directory"
        )
    return prefixes[0] if prefixes else ""


def _put(
    model: PreTrainedModel,
    found: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    base: str | os.PathLike[str],
) -> None:
    """Load weights that must be the model's, all and no others."""
    wanted = model.state_dict()
    try:
        missing, unexpected = model.load_state_dict(dict(found), strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the architecture of {base}: {error}") from error
    # A tied weight has several names, of which one is enough.
    there = {value.data_ptr() for key, value in wanted.items() if key in found}
    missing = [key for key in missing if wanted[key].data_ptr() not in there]
    for keys, where in ((missing, "the checkpoint lacks"), (unexpected, "the model lacks")):
        if keys:
            raise ValueError(f"{path} does not fit the architecture of {base}: {where} {min(keys)}")
