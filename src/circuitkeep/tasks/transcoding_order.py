"""In which order a training reads activations that may be in many files."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler


class BlockOrder(StatefulDistributedSampler):
    """Shuffles files, and tokens among as many files as are in memory at a time.

    The order follows from the seed and the epoch alone, whatever the number of processes, which
    take every n-th of it.

    Args:
        sizes: Tokens in each file.
        held: Files in memory at a time.
        rank: Of this process.
        ranks: How many processes share the tokens.
        seed: Of the order.
    """

    def __init__(self, sizes: Sequence[int], held: int, rank: int, ranks: int, seed: int) -> None:
        everything: Any = range(sum(sizes))
        super().__init__(everything, ranks, rank, shuffle=True, seed=seed, drop_last=True)
        self.sizes, self.held = sizes, held

    def __iter__(self) -> Generator[int, None, None]:
        self.yielded, self.next_yielded = self.next_yielded or 0, None
        for index in itertools.islice(self._mine(), self.yielded, None):
            self.yielded += 1
            yield index

    def _mine(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        starts = [0, *itertools.accumulate(self.sizes)]
        files = torch.randperm(len(self.sizes), generator=generator).tolist()
        place = 0
        for first in range(0, len(files), self.held):
            held = files[first : first + self.held]
            block = torch.cat([torch.arange(starts[file], starts[file + 1]) for file in held])
            block = block[torch.randperm(len(block), generator=generator)]
            block = block[: max(0, self.total_size - place)]
            offset = (self.rank - place) % self.num_replicas
            yield from block[offset :: self.num_replicas].tolist()
            place += len(block)
