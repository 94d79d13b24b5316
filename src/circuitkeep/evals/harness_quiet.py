"""What lm-evaluation-harness says while it works, cut down to what a user must know."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from tqdm import tqdm

_EXPECTED = ("`pretrained` model kwarg is not", "Passed an already-initialized model")
"""Warnings of what is done here on purpose."""


class _Collector(logging.Handler):
    """Keeps each warning once, whatever numbers it holds, and how often it came."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        text = record.getMessage()
        if not text.startswith(_EXPECTED):
            self.found.setdefault(re.sub(r"\d+", "N", text), []).append(text)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, no prints and no processes for standard errors; a warning is given once at the end.

    Prompts that do not fit into the model's context are warned of one by one otherwise, and bars
    would break the one that the caller may have.
    """
    logger, collector = logging.getLogger("lm_eval"), _Collector()
    before = logger.propagate, os.environ.get("DISABLE_MULTIPROC")
    begin: Any = tqdm.__init__

    def hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = hidden  # pyright: ignore[reportAttributeAccessIssue]
    logger.propagate = False
    logger.addHandler(collector)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = begin
        logger.removeHandler(collector)
        logger.propagate = before[0]
        del os.environ["DISABLE_MULTIPROC"]
        if before[1] is not None:
            os.environ["DISABLE_MULTIPROC"] = before[1]
    for texts in collector.found.values():
        more = f" ({len(texts) - 1} more like it)" if len(texts) > 1 else ""
        warnings.warn(f"lm-evaluation-harness: {texts[0]}{more}", stacklevel=3)
