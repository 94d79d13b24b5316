"""Activations on disk, for models too large to hold them in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitkeep.files import replacing
from circuitkeep.transcoders.harvest import Harvest

INDEX = "index.json"


def write_shards(
    folder: Path,
    fingerprint: str,
    parts: int,
    make: Callable[[int], Harvest],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write one file per part, and an index when all are there.

    Each file appears whole or not at all. Parts that are there are not made again, so that what
    was cut off goes on.

    Args:
        folder: Where they go.
        fingerprint: Of all that the activations depend on.
        parts: How many there are.
        make: Called with a part's number.
        progress: Told how many are done.

    Raises:
        ValueError: If the folder holds shards of something else.
        OSError: If it cannot be written, or the disk is full.
    """
    sizes = []
    for part in range(parts):
        path = _shard(folder, part)
        if not path.is_file():
            made = make(part)
            try:
                with replacing(path) as temporary:
                    save_file(made._asdict(), temporary, {"fingerprint": fingerprint})
            except SafetensorError as error:  # which is no OSError, even where the disk is full
                raise OSError(f"the shard was not written to {path}: {error}") from error
            sizes.append(len(made.inputs))
        else:
            sizes.append(_size(path, fingerprint))
        progress(part + 1, parts)
    with replacing(folder / INDEX) as temporary:
        content = {"fingerprint": fingerprint, "tokens": sizes}
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _shard(folder: Path, part: int) -> Path:
    return folder / f"activations-{part:05}.safetensors"


def _size(path: Path, fingerprint: str) -> int:
    """Tokens in a shard.

    Raises:
        ValueError: If it is of something else, or torn.
    """
    try:
        with safe_open(path, "pt") as file:
            known = (file.metadata() or {}).get("fingerprint")
            tokens = file.get_slice("inputs").get_shape()[0]
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole file of activations ({error}); delete it") from error
    if known != fingerprint:
        raise ValueError(
            f"{path.parent} holds activations of another model, or of other data; choose another "
            "folder, or delete it"
        )
    return tokens


class Shards:
    """Activations that `write_shards` wrote, of which at most `held` files are in memory.

    Attributes:
        sizes: Tokens in each file.
        held: Files in memory at a time.
        loads: How many files have been read.
    """

    def __init__(self, folder: Path, fingerprint: str, held: int) -> None:
        if held < 1:
            raise ValueError(f"shards_in_memory={held}: at least one must be")
        index = folder / INDEX
        if not index.is_file():
            raise ValueError(f"there are no activations in {folder}, or not all of them")
        self.sizes: list[int] = json.loads(index.read_text(encoding="utf-8"))["tokens"]
        self.folder, self.held, self.loads = folder, held, 0
        _size(_shard(folder, 0), fingerprint)
        self._starts = torch.tensor([0, *self.sizes]).cumsum(0)
        self._cache: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Int[Tensor, " token"]) -> Harvest:
        """The activations at `indices`, counted through all files."""
        which = torch.bucketize(indices, self._starts, right=True) - 1
        # Those in memory first, lest what is read for the others pushes them out.
        needed = sorted(which.unique().tolist(), key=lambda part: part not in self._cache)
        found: list[list[Tensor]] = [[], []]
        places = []
        for part in needed:
            mine = (which == part).nonzero()[:, 0]
            tensors = self._read(part)
            rows = indices[mine] - self._starts[part]
            for values, name in zip(found, Harvest._fields, strict=True):
                values.append(tensors[name][rows])
            places.append(mine)
        order = torch.cat(places).argsort()
        return Harvest(*(torch.cat(values)[order] for values in found))

    def _read(self, part: int) -> dict[str, Tensor]:
        if part not in self._cache:
            while len(self._cache) >= self.held:
                self._cache.popitem(last=False)
            self._cache[part] = load_file(_shard(self.folder, part))
            self.loads += 1
        self._cache.move_to_end(part)
        return self._cache[part]


class InMemory:
    """Activations in memory; the same to ask as `Shards`."""

    def __init__(self, parts: Iterable[Harvest]) -> None:
        both = zip(*parts, strict=True)
        self.inputs: Float[Tensor, "token layer d_model"]
        self.inputs, self.outputs = (torch.cat(values) for values in both)
        self.sizes = [len(self.inputs)]
        self.held = 1

    def __len__(self) -> int:
        return self.sizes[0]

    def take(self, indices: Int[Tensor, " token"]) -> Harvest:
        """The activations at `indices`."""
        return Harvest(self.inputs[indices], self.outputs[indices])
