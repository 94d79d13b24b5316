"""Rows of tokens and the loaders that can go on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler


class Rows(Dataset[dict[str, Tensor]]):
    """Columns of equal length, served row by row.

    Attributes:
        columns: ``input_ids``, ``attention_mask``, ``labels`` and, where the data mark answers,
            ``answers``; each of shape ``row pos``.
    """

    def __init__(self, columns: Mapping[str, Shaped[Tensor, "row pos"]]) -> None:
        self.columns = dict(columns)
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"the columns must have one length, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}


def training_loader(
    rows: Dataset,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> StatefulDataLoader:
    """A shuffled loader whose order is a function of the seed and the epoch alone.

    Nothing is drawn from the global random state, so data order is the same whatever else the
    run draws, and a resumed run needs only the epoch and the position in it; see
    `circuitkeep.callbacks.resume.ExactResume`.

    Args:
        rows: What to load.
        batch_size: Rows per batch and process.
        seed: Of the order.
        num_workers: Loader processes; 0 loads in the main process.
        rank: Of this process.
        ranks: How many processes share the rows.
    """
    # The sampler's own seed is seed + epoch: spread, lest run 1 repeat run 0 one epoch later.
    sampler = StatefulDistributedSampler(
        rows, num_replicas=ranks, rank=rank, shuffle=True, seed=seed * 1_000_003
    )
    return StatefulDataLoader(
        rows,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )


def validation_loader(
    rows: Dataset, batch_size: int, num_workers: int = 0
) -> DataLoader[dict[str, Tensor]]:
    """A loader in order, which draws nothing from the global random state either."""
    return DataLoader(
        rows, batch_size=batch_size, num_workers=num_workers, generator=torch.Generator()
    )


class RowsModule(LightningDataModule):
    """Serves `train_rows` shuffled and `val_rows` in order.

    Args:
        batch_size: Rows per batch and process.
        seed: Of the order of the training rows.
        num_workers: Loader processes; 0 loads in the main process.
    """

    train_rows: Rows
    val_rows: Rows | None

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled anew each epoch; can go on in the middle of one."""
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return training_loader(
            self.train_rows, self.batch_size, self.seed, self.num_workers, rank, ranks
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader]:
        """In order; none where there are no validation rows."""
        if self.val_rows is None:
            return []
        return validation_loader(self.val_rows, self.batch_size, self.num_workers)
