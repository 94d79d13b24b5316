"""What the parts of `study_line_breaks` share: rows, manifolds, and a model's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuitkeep.capture import Backend, Edits, probe_mode
from circuitkeep.probes import LineBreaks, ProbeBatch
from circuitkeep.probes.line_text import WORDS
from circuitkeep.probing import probe_context

NEAR = max(map(len, WORDS)) + 1
"""A line with less than this left may break, if the next word is the longest."""

COUNT = {"variable": "characters", "values": (2, 72)}
WIDTH = {"variable": "width", "values": (20, 79), "step": 5}
REMAINING = {"variable": "remaining", "values": (0, 60)}
NEXT = {"variable": "next-length", "values": (2, 13)}
SHAPES = {"count": COUNT, "width": WIDTH, "remaining": REMAINING, "next-length": NEXT}


def probe_batch(backend: Backend, tokenizer: Any, rows: int, seed: int = 10_000) -> ProbeBatch:
    """Held-out rows of the probe."""
    return LineBreaks().batch(probe_context(backend, tokenizer), "held_out", rows, seed)


@torch.no_grad()
def logits_of(
    backend: Backend,
    tokens: Tensor,
    edit: Callable[[Tensor], Edits] | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """Logits of all rows, some at a time; `edit` makes the edits of their part of `at`."""
    found = []
    for rows in torch.arange(len(tokens)).split(64):
        edits = Edits() if edit is None or at is None else edit(at[rows])
        with probe_mode(backend.model), backend.edit(edits):
            logits = backend.forward(tokens[rows])
        assert logits is not None
        found.append(logits)
    return torch.cat(found)
