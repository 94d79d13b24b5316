"""Reading documents from files, folders and the hub, and saying plainly what is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from pyarrow import ArrowException

SUFFIXES = (".txt", ".jsonl", ".parquet")

Source = str | os.PathLike[str] | Sequence[str | Mapping[str, str]]
"""A file, a folder written by `datasets.save_to_disk`, a dataset on the hub, or the records."""


@dataclass(frozen=True)
class Document:
    """A text, and what precedes it without being learned.

    Attributes:
        text: Learned from its first token to its last.
        prompt: Only read; None for running text, which asks nothing and has no answers.
    """

    text: str
    prompt: str | None = None


def read_documents(
    source: Source, text_field: str = "text", split: str = "train"
) -> list[Document]:
    """Read every document of `source`; what it is follows from its name.

    - ``*.txt`` is one document;
    - ``*.jsonl`` has one object per line, with `text_field`, or with ``prompt`` and
      ``completion``; so have the rows of ``*.parquet``;
    - a folder is one that `datasets.Dataset.save_to_disk` wrote;
    - a list holds texts or such objects;
    - any other name is a dataset on the Hugging Face hub.

    Args:
        source: See above.
        text_field: The field with the text.
        split: Which split to take where a folder or a hub dataset has several.

    Raises:
        ValueError: In one sentence, if `source` is missing, empty or unreadable, or a field is
            missing; with the line number for a ``.jsonl``.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _documents(source, "the list of documents", text_field)
    path, name = Path(source), os.fspath(source)
    if path.is_dir():
        return _documents(_load_folder(path, split), name, text_field)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise ValueError(f"there is no data file {name} (looked for {path.absolute()})")
        return _READERS[path.suffix](path, text_field)
    if path.exists():
        raise ValueError(f"{name} is not a kind of data file known here: {', '.join(SUFFIXES)}")
    return _documents(_load_from_hub(name, split), name, text_field)


def _read_txt(path: Path, text_field: str) -> list[Document]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return [Document(text)]


def _read_jsonl(path: Path, text_field: str) -> list[Document]:
    documents = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{where} is not JSON: {error}") from error
            documents.append(_document(record, where, text_field))
    if not documents:
        raise ValueError(f"{path} is empty")
    return documents


def _read_parquet(path: Path, text_field: str) -> list[Document]:
    # Not `Dataset.from_parquet`, which copies the file into a cache keyed by its path.
    try:
        table = pyarrow.parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {_one_line(error)}") from error
    return _documents(datasets.Dataset(table), str(path), text_field)


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _load_folder(path: Path, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the folder {path} was not written by datasets' save_to_disk; name a "
            f"{', '.join(SUFFIXES)} file, or such a folder"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(map(str, loaded))}")
        return loaded[split]
    return loaded


def _load_from_hub(name: str, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, split=split)
    # The hub client raises its own, httpx's and OSError's exceptions: all mean the same here.
    except Exception as error:
        raise ValueError(
            f"{name!r} is neither a file, nor a folder, nor a dataset that the Hugging Face hub "
            f"gave us: {_one_line(error)}"
        ) from error


def _documents(records: Iterable[Any], name: str, text_field: str) -> list[Document]:
    documents = [
        _document(record, f"{name}, record {number}", text_field)
        for number, record in enumerate(records, start=1)
    ]
    if not documents:
        raise ValueError(f"{name} is empty")
    return documents


def _document(record: object, where: str, text_field: str) -> Document:
    if isinstance(record, str):
        return Document(record)
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} holds a {type(record).__name__} instead of an object")
    if "prompt" in record and "completion" in record:
        wanted = {"text": record["completion"], "prompt": record["prompt"]}
    elif text_field in record:
        wanted = {"text": record[text_field]}
    else:
        fields = ", ".join(repr(field) for field in record) or "none"
        raise ValueError(
            f"{where} has neither {text_field!r} nor 'prompt' with 'completion'; "
            f"its fields: {fields}"
        )
    for value in wanted.values():
        if not isinstance(value, str):
            raise ValueError(f"{where} holds a {type(value).__name__} where a text should be")
    if not wanted["text"]:
        raise ValueError(f"{where} has an empty text")
    return Document(**wanted)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
