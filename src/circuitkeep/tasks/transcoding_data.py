"""Activations of a frozen model as training data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from circuitkeep.capture import Backend
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.files import replacing
from circuitkeep.tasks.transcoding_order import BlockOrder
from circuitkeep.tasks.transcoding_rows import token_rows
from circuitkeep.transcoders.harvest import Harvest, harvest
from circuitkeep.transcoders.normalization import Scales, estimate_scales
from circuitkeep.transcoders.rows import TokenRows
from circuitkeep.transcoders.shards import InMemory, Shards, write_shards

DTYPES = ("float32", "bfloat16", "float16")
_FOR_SCALES = 100_000
"""Tokens whose activations tell the scales."""


class Tokens(Dataset[Harvest]):
    """The activations of tokens, fetched a batch at a time."""

    def __init__(self, source: InMemory | Shards) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Harvest:
        return self.source.take(torch.tensor(indices))


class ActivationData(LightningDataModule):
    """What the MLPs of a frozen model read and write at the tokens of a text, or of its samples.

    The tokens are kept in ``tokens.safetensors`` in `folder`, so that a run that is resumed has the
    same ones without drawing them again. The activations are kept in memory, or, with `shards`, in
    files in `folder`, written once.

    Args:
        backend: The model.
        tokenizer: Its tokenizer; None for own samples of a model without one.
        folder: Where tokens and shards are kept.
        text: A text file, a folder or a data set, as `circuitkeep.tasks.TextData` reads them; None
            for samples of the model itself, from BOS.
        rows: Rows to train on; None for all of a text.
        held_out_rows: Rows to measure on; of a text, its end.
        length: Tokens per row.
        skip_first: Positions at the start of each row that are left out.
        batch_size: Tokens per batch and process.
        rows_at_once: Rows per forward pass of the model.
        dtype: What activations are kept in: float32, bfloat16 or float16.
        shards: Keep activations on disk.
        rows_per_shard: Rows whose activations make a file.
        shards_in_memory: Files among which tokens are shuffled.
        seed: Of the order in which tokens are trained on.
        text_seed: Of the samples.
        progress: Told what is being done, how much is done, of how much.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any,
        folder: str | Path,
        text: str | None = None,
        rows: int | None = 4096,
        held_out_rows: int = 256,
        length: int = 256,
        skip_first: int = 0,
        batch_size: int = 512,
        rows_at_once: int = 32,
        dtype: str = "float16",
        shards: bool = False,
        rows_per_shard: int = 512,
        shards_in_memory: int = 4,
        seed: int = 0,
        text_seed: int = 0,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"data.dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
        positive = {"held_out_rows": held_out_rows, "batch_size": batch_size}
        positive |= {"rows_at_once": rows_at_once, "rows_per_shard": rows_per_shard}
        positive |= {
            "shards_in_memory": shards_in_memory,
            "length - skip_first": length - skip_first,
        }
        for name, value in (positive | ({} if rows is None else {"rows": rows})).items():
            if value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")
        if length > backend.context_length:
            raise ValueError(
                f"data.length={length} is longer than the model's context of "
                f"{backend.context_length}"
            )
        self.backend, self.tokenizer, self.folder = backend, tokenizer, Path(folder)
        self.text, self.rows, self.held_out_rows, self.length = text, rows, held_out_rows, length
        self.skip_first, self.batch_size, self.rows_at_once = skip_first, batch_size, rows_at_once
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.shards, self.rows_per_shard = shards, rows_per_shard
        self.shards_in_memory, self.tell = shards_in_memory, progress
        self.seed, self.text_seed = seed, text_seed
        self._ready = False

    def prepare_data(self) -> None:
        """Draw or read the tokens, and write the shards, in one process, unless that was done.

        Raises:
            ValueError: If the folder holds the tokens or shards of something else, or there are
                not enough rows.
            OSError: If it cannot be written.
        """
        self._move()
        path, asked = self.folder / "tokens.safetensors", self._asked()
        if path.is_file():
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("asked") != asked:
                    raise ValueError(
                        f"{path} holds tokens of another model, or drawn by other settings; choose "
                        "another output, or delete it"
                    )
        else:
            train, held_out = self._rows()
            columns = {"train": train.tokens, "train_mask": train.mask}
            columns |= {"held_out": held_out.tokens, "held_out_mask": held_out.mask}
            content = {name: value.contiguous() for name, value in columns.items()}
            with replacing(path) as temporary:
                save_file(content, temporary, {"asked": asked})
        if self.shards:
            train = self.train
            cuts = range(0, len(train.tokens), self.rows_per_shard)

            def make(part: int) -> Harvest:
                rows = slice(cuts[part], cuts[part] + self.rows_per_shard)
                parts = self._harvest(TokenRows(train.tokens[rows], train.mask[rows]))
                return Harvest(*(torch.cat(values) for values in zip(*parts, strict=True)))

            def tell(done: int, total: int) -> None:
                self.tell("writing activations", done, total)

            write_shards(self.folder / "activations", self._fingerprint(), len(cuts), make, tell)

    def setup(self, stage: str | None = None) -> None:
        """Make the activations, or open their files."""
        if self._ready:
            return
        self._move()
        if self.shards:
            where = self.folder / "activations"
            self.source = Shards(where, self._fingerprint(), self.shards_in_memory)
        else:
            self.source = InMemory(self._harvest(self.train, "computing activations"))
        world = self.trainer.world_size if self.trainer else 1
        if len(self.source) < self.batch_size * world:
            raise ValueError(
                f"{len(self.source)} tokens do not fill a batch of {self.batch_size * world}; use "
                "more rows or a lower data.batch_size"
            )
        self.held_out_source = InMemory(self._harvest(self.held_out))
        self._ready = True

    @property
    def train(self) -> TokenRows:
        """The rows to train on."""
        return self._kept("train")

    @property
    def held_out(self) -> TokenRows:
        """The rows to measure on."""
        return self._kept("held_out")

    def scales(self, normalized: bool) -> Scales:
        """The scales of the first activations.

        Args:
            normalized: Whether a position's input is divided by its root mean square first.
        """

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for first in range(0, min(_FOR_SCALES, len(self.source)), 4096):
                last = min(first + 4096, len(self.source))
                found = self.source.take(torch.arange(first, last))
                inputs, outputs = (values.float().transpose(0, 1) for values in found)
                if normalized:
                    inputs = inputs * inputs.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
                yield inputs, outputs

        return estimate_scales(batches())

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled anew each epoch; can go on in the middle of one."""
        trainer, source = self.trainer, self.source
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return StatefulDataLoader(
            Tokens(source),
            batch_size=self.batch_size,
            # The sampler's own seed is seed + epoch: spread, lest run 1 repeat run 0 later.
            sampler=BlockOrder(source.sizes, source.held, rank, ranks, self.seed * 1_000_003),
            drop_last=True,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(
            Tokens(self.held_out_source),
            batch_size=self.batch_size,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def _harvest(self, rows: TokenRows, what: str | None = None) -> Iterator[Harvest]:
        mask = rows.mask.clone()
        mask[:, : self.skip_first] = False
        parts = harvest(self.backend, rows.tokens, mask, self.rows_at_once, self.dtype)
        total = -(-len(rows.tokens) // self.rows_at_once)
        for number, part in enumerate(parts):
            if what is not None:
                self.tell(what, number + 1, total)
            yield part

    def _kept(self, name: str) -> TokenRows:
        tensors = load_file(self.folder / "tokens.safetensors")
        return TokenRows(tensors[name], tensors[f"{name}_mask"])

    def _rows(self) -> tuple[TokenRows, TokenRows]:
        """Rows to train on, and rows to measure on."""
        number = None if self.rows is None else self.rows + self.held_out_rows

        def tell(done: int, total: int) -> None:
            self.tell("drawing text", done, total)

        rows = token_rows(
            self.backend, self.tokenizer, self.text, number, self.length, self.text_seed, tell
        )
        if len(rows.tokens) <= self.held_out_rows:
            raise ValueError(
                f"{self.text} has only {len(rows.tokens)} rows of {self.length} tokens; lower "
                "data.held_out_rows or data.length"
            )
        return _split(rows, self.held_out_rows)

    def _asked(self) -> str:
        """All that the tokens depend on."""
        names = ("text", "rows", "held_out_rows", "length", "text_seed")
        asked = {name: getattr(self, name) for name in names}
        return json.dumps(asked | {"model": self._model()}, sort_keys=True)

    def _fingerprint(self) -> str:
        names = ("skip_first", "rows_per_shard", "dtype")
        settings = [self._asked(), *(str(getattr(self, name)) for name in names)]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _model(self) -> str:
        if not hasattr(self, "_model_fingerprint"):
            self._model_fingerprint = fingerprint_model(self.backend.model)
        return self._model_fingerprint

    def _move(self) -> None:
        if self.trainer is not None:
            self.backend.model.to(self.trainer.strategy.root_device)


def _split(rows: TokenRows, held_out: int) -> tuple[TokenRows, TokenRows]:
    first = TokenRows(*(values[:-held_out] for values in rows))
    return first, TokenRows(*(values[-held_out:] for values in rows))


def _as_it_is(batch: Any) -> Any:
    return batch
