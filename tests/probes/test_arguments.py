from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from circuitkeep.probes.arguments import check_arguments


class Example:
    def __init__(
        self,
        number: int = 0,
        share: float = 0.0,
        text: str | None = None,
        texts: Sequence[str] = (),
        pairs: Sequence[Sequence[int]] | None = None,
        named: Mapping[str, int] | None = None,
        anything: Any = None,
        free=None,
    ) -> None: ...


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": 3, "share": 2},
        {"share": 0.5, "text": None},
        {"texts": ["a"], "pairs": [[1, 2], ()]},
        {"named": {"a": 1}, "anything": object(), "free": object()},
        {"pairs": None, "named": {}},
    ],
)
def test_what_fits(arguments):
    check_arguments(Example, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"number": 0.5}, "number must be a whole number, got 0.5"),
        ({"number": True}, "number must be a whole number, got True"),
        ({"share": "half"}, "share must be a number, got 'half'"),
        ({"text": 3}, "text must be a text or null, got 3"),
        ({"texts": "abc"}, "texts must be a list, of each a text, got 'abc'"),
        ({"texts": [1]}, "texts must be a list, of each a text"),
        ({"pairs": [[1, "a"]]}, "pairs must be a list, of each a list, of each a whole number or"),
        ({"named": {"a": "b"}}, "named must be a mapping, to a whole number or null"),
        ({"named": [1]}, "named must be a mapping"),
    ],
)
def test_what_does_not(arguments, words):
    with pytest.raises(ValueError, match="^Example: " + words.replace("[", r"\[")):
        check_arguments(Example, arguments)
