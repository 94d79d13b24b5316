"""The tokens at which a transcoder is trained or measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitkeep.capture import Backend
from circuitkeep.tasks.text import TextData
from circuitkeep.transcoders.rows import TokenRows, own_rows


def token_rows(
    backend: Backend,
    tokenizer: Any,
    text: str | None,
    rows: int | None,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenRows:
    """Rows of a text, or of the model's own samples where `text` is None.

    Args:
        backend: The model.
        tokenizer: Its tokenizer.
        text: As `circuitkeep.tasks.TextData` reads it.
        rows: How many; None for all of a text.
        length: Tokens per row.
        seed: Of the samples.
        progress: Told how many are drawn.

    Raises:
        ValueError: If the text has fewer rows, or the model cannot be sampled.
    """
    if text is None:
        if rows is None:
            raise ValueError("data.rows: how many rows shall the model draw? e.g. data.rows=4096")
        return own_rows(backend, tokenizer, rows, length, seed, progress)
    data = TextData(text, None, tokenizer, length)
    data.setup()
    columns = data.train_rows.columns
    found = TokenRows(columns["input_ids"], columns["attention_mask"].bool())
    if rows is not None and len(found.tokens) < rows:
        raise ValueError(
            f"{text} has {len(found.tokens)} rows of {length} tokens, fewer than {rows}; lower "
            "data.rows, data.held_out_rows or data.length"
        )
    return TokenRows(*(values[:rows] for values in found))
