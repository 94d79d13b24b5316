"""What is wrong with a circuit file, said so that it can be mended."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CircuitError(ValueError):
    """What is wrong with a circuit, and where: the keys that lead to it in its file.

    Attributes:
        keys: From the outermost; a number is a place in a list.
    """

    def __init__(self, message: str, *keys: str | int) -> None:
        super().__init__(message)
        self.keys = keys


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest of `known`, or all of them if none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
