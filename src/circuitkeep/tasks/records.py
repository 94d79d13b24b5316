"""Lines of a .jsonl file as records of text, and rows of tokens made of them."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.tasks.loading import Rows, RowsModule

T = TypeVar("T")


class TextRecords(RowsModule):
    """Records of a file as rows of tokens; what records and rows are, subclasses say.

    Args:
        train: The file.
        validation: Such a file, or the fraction of `train` to hold out at random, or None.
        tokenizer: A Hugging Face tokenizer.
        batch_size: Records per batch and process.
        seed: Of the order of the rows and of those held out.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        train: str | os.PathLike[str],
        validation: str | os.PathLike[str] | float | None,
        tokenizer: Any,
        batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if isinstance(validation, (int, float)) and not 0 < validation < 1:
            raise ValueError(
                f"validation={validation} is not a fraction between 0 and 1; "
                "use null for no validation"
            )
        self.train = train
        self.validation = validation
        self.tokenizer = tokenizer
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize, once.

        Raises:
            ValueError: In one sentence, if there is no tokenizer, or a file cannot be used.
        """
        if self._ready:
            return
        if self.tokenizer is None:
            raise ValueError(
                "text needs a tokenizer, and the model came without one: name one (in the command "
                "line by model.tokenizer=PATH), or use data made of tokens"
            )
        train, held_out = self.read(Path(self.train)), []
        if isinstance(self.validation, (int, float)):
            train, held_out = split_records(train, self.validation, self.seed)
        elif self.validation is not None:
            held_out = self.read(Path(self.validation))
        self.train_rows = self.rows(train)
        self.val_rows = self.rows(held_out) if held_out else None
        self._ready = True

    def read(self, path: Path) -> list[dict[str, str]]:
        """The records of a file."""
        raise NotImplementedError

    def rows(self, records: Sequence[dict[str, str]]) -> Rows:
        """The rows of records."""
        raise NotImplementedError


def read_records(
    path: Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The named fields of every line of a .jsonl file; blank lines are passed over.

    Raises:
        ValueError: With file and line, for what is no object, and for fields that are missing, no
            text, or empty; also if there is no such file, or nothing in it.
    """
    if not path.is_file():
        raise ValueError(f"there is no data file {path} (looked for {path.absolute()})")
    records = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                records.append(_record(line, f"{path}:{number}", needed, optional))
    if not records:
        raise ValueError(f"{path} is empty")
    return records


def _record(
    line: bytes, where: str, needed: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} holds a {type(record).__name__} instead of an object")
    fields = [*needed, *(name for name in optional if name in record)]
    for name in fields:
        if name not in record:
            there = ", ".join(map(repr, record)) or "none"
            raise ValueError(f"{where} has no {name!r}; its fields: {there}")
        if not isinstance(record[name], str):
            kind = type(record[name]).__name__
            raise ValueError(f"{where}: {name!r} is a {kind}, and should be a text")
        if not record[name].strip():
            raise ValueError(f"{where}: {name!r} is empty; leave the line out")
    return {name: record[name] for name in fields}


def split_records(records: Sequence[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """What is trained on, and a random part that is held out.

    Raises:
        ValueError: If either part would be empty.
    """
    held_out = round(fraction * len(records))
    if not 0 < held_out < len(records):
        raise ValueError(
            f"holding out {fraction} of {len(records)} rows leaves nothing to train on or nothing "
            "to hold out; use another validation, or null for none"
        )
    chosen = set(random.Random(seed).sample(range(len(records)), held_out))
    return (
        [record for i, record in enumerate(records) if i not in chosen],
        [record for i, record in enumerate(records) if i in chosen],
    )


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """BOS, where the tokenizer has one, and the prompt's tokens."""
    bos = tokenizer.bos_token_id
    return [*([] if bos is None else [bos]), *_encode(tokenizer, prompt)]


def continuation_tokens(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """The tokens of `text` as they follow `prompt`, which may differ from those of it alone.

    Where the tokenizer joins the end of the prompt with the text, those of it alone, because a
    prompt must not depend on what follows.
    """
    before, both = _encode(tokenizer, prompt), _encode(tokenizer, prompt + text)
    return both[len(before) :] if both[: len(before)] == before else _encode(tokenizer, text)


def stack(
    rows: Sequence[Sequence[int]], fill: int
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Rows of one length, padded on the right, and where they are real."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return tokens, mask


def tell_left_out(count: int, total: int, what: str) -> None:
    """Warn of rows that were left out.

    Raises:
        ValueError: If none is left.
    """
    if count == total:
        raise ValueError(f"all {total} rows {what}: nothing is left to train on")
    if count:
        warnings.warn(f"{count} of {total} rows {what} and are left out", stacklevel=2)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
