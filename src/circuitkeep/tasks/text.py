"""Text as training data: from documents to rows of tokens."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuitkeep.evals.capability import IGNORED
from circuitkeep.tasks.documents import Document, Source, read_documents
from circuitkeep.tasks.loading import Rows, RowsModule


class Tokens(NamedTuple):
    """A stretch of text: its tokens, which of them have a loss, and which are answers."""

    ids: list[int]
    learned: list[bool]
    answers: list[bool]


class TextData(RowsModule):
    """Documents as rows of `block_size` tokens with the labels of a causal language model.

    A prompt is read but not learned; the tokens of its completion count as answers. Every
    document ends with EOS where the tokenizer has one.

    Args:
        train: Documents; see `circuitkeep.tasks.documents.read_documents`.
        validation: Held-out documents, or the fraction of `train` to hold out: random
            documents, or the end of the text if there is only one. None for no validation.
        tokenizer: A Hugging Face tokenizer.
        block_size: Tokens per row.
        batch_size: Rows per batch and process.
        packing: Lay the documents end to end and cut the stream into blocks, or give each
            document its own row, cut at `block_size` and padded on the right.
        bos: Begin every row with BOS; None does so where the tokenizer has one.
        text_field: The field of a record that holds the text.
        seed: Of the order of the rows and of the documents held out.
        num_workers: Loader processes; 0 loads in the main process.
    """

    def __init__(
        self,
        train: Source,
        validation: Source | float | None = 0.1,
        tokenizer: Any = None,
        block_size: int = 128,
        batch_size: int = 16,
        packing: bool = True,
        bos: bool | None = None,
        text_field: str = "text",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        if isinstance(validation, (int, float)) and not 0 < validation < 1:
            raise ValueError(
                f"validation={validation} is not a fraction between 0 and 1; "
                "use null for no validation"
            )
        if block_size < 2:
            raise ValueError(f"block_size must be at least 2 to predict a token, got {block_size}")
        self.train = train
        self.validation = validation
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.packing = packing
        self.bos = bos
        self.text_field = text_field
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize, once.

        Raises:
            ValueError: In one sentence, if there is no tokenizer, or the documents cannot be
                read or used.
        """
        if self._ready:
            return
        if self.tokenizer is None:
            raise ValueError(
                "text needs a tokenizer, and the model came without one: name one (in the command "
                "line by model.tokenizer=PATH), or use data made of tokens, such as data=key_value"
            )
        train = self._tokenize(read_documents(self.train, self.text_field))
        if isinstance(self.validation, (int, float)):
            train, held_out = hold_out(train, float(self.validation), self.seed)
        elif self.validation is None:
            held_out = []
        else:
            held_out = self._tokenize(
                read_documents(self.validation, self.text_field, split="validation")
            )
        self.train_rows = self._rows(train)
        self.val_rows = self._rows(held_out) if held_out else None
        self._ready = True

    def _tokenize(self, documents: Sequence[Document]) -> list[Tokens]:
        def encode(texts: list[str]) -> list[list[int]]:
            # verbose=False: a text longer than the context is no news here, it is cut below.
            return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

        eos = self.tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        prompts = encode([document.prompt or "" for document in documents])
        texts = encode([document.text for document in documents])
        tokens = []
        for document, prompt, text in zip(documents, prompts, texts, strict=True):
            learned = [False] * len(prompt) + [True] * (len(text) + len(end))
            answers = learned if document.prompt is not None else [False] * len(learned)
            tokens.append(Tokens(prompt + text + end, learned, answers))
        return tokens

    def _rows(self, documents: Sequence[Tokens]) -> Rows:
        start = self._start()
        room = self.block_size - len(start)
        if self.packing:
            if len(documents) > 1 and self.tokenizer.eos_token_id is None:
                raise ValueError(
                    "the tokenizer has no EOS token to mark where one document ends and the "
                    "next begins; use packing=false"
                )
            stream = _joined(documents)
            return _pad(start, [_cut(stream, i, i + room) for i in range(0, len(stream.ids), room)])
        rows = [_cut(document, 0, room) for document in documents]
        for number, row in enumerate(rows, start=1):
            if not any(row.learned):
                raise ValueError(
                    f"the prompt of document {number} fills its row of {self.block_size} tokens, "
                    "so nothing of it would be learned; raise block_size"
                )
        return _pad(start, rows)

    def _start(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if self.bos and bos is None:
            raise ValueError("bos=true, but the tokenizer has no BOS token; use bos=null")
        return [] if bos is None or self.bos is False else [bos]


def hold_out(
    documents: Sequence[Tokens], fraction: float, seed: int
) -> tuple[list[Tokens], list[Tokens]]:
    """Split into what is trained on and what is held out.

    Several documents are drawn at random; of a single one the end is held out.

    Raises:
        ValueError: If either part would be empty.
    """
    if len(documents) == 1:
        size = len(documents[0].ids)
        kept = size - round(fraction * size)
        train, held_out = [_cut(documents[0], 0, kept)], [_cut(documents[0], kept, size)]
    else:
        size = len(documents)
        kept = size - round(fraction * size)
        order = random.Random(seed).sample(range(size), size)
        train = [documents[i] for i in sorted(order[:kept])]
        held_out = [documents[i] for i in sorted(order[kept:])]
    if not 0 < kept < size:
        raise ValueError(
            f"holding out {fraction} of {size} {'tokens' if len(documents) == 1 else 'documents'} "
            "leaves nothing to train on or nothing to hold out; use another validation"
        )
    return train, held_out


def _cut(tokens: Tokens, start: int, stop: int) -> Tokens:
    return Tokens(tokens.ids[start:stop], tokens.learned[start:stop], tokens.answers[start:stop])


def _joined(documents: Sequence[Tokens]) -> Tokens:
    chain = itertools.chain.from_iterable
    return Tokens(
        list(chain(document.ids for document in documents)),
        list(chain(document.learned for document in documents)),
        list(chain(document.answers for document in documents)),
    )


def _pad(start: list[int], rows: Sequence[Tokens]) -> Rows:
    """Rows of one length, each after `start`; padding has no attention, no label, no answer."""
    width = len(start) + max(len(row.ids) for row in rows)
    shape = (len(rows), width)
    # The padding token does not matter: nothing attends to it and nothing predicts it.
    columns: dict[str, Tensor] = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
        "answers": torch.zeros(shape, dtype=torch.bool),
    }
    for i, row in enumerate(rows):
        ids = torch.tensor([*start, *row.ids])
        content = slice(len(start), len(ids))
        columns["input_ids"][i, : len(ids)] = ids
        columns["attention_mask"][i, : len(ids)] = 1
        columns["labels"][i, content] = ids[content].where(torch.tensor(row.learned), IGNORED)
        columns["answers"][i, content] = torch.tensor(row.answers)
    if not columns["answers"].any():
        del columns["answers"]
    return Rows(columns)
