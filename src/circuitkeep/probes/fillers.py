"""The words that templates are filled with, divided between the splits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from circuitkeep.circuits import did_you_mean
from circuitkeep.probes.base import Split
from circuitkeep.probes.rows import partition

Row = tuple[str, ...]
"""Words that are drawn together, one per placeholder of a joint draw."""


class Fillers:
    """What each placeholder may hold, per split.

    ``{name: [Lily, Tim]}`` lists the words of one placeholder; ``{"noun,verb": [[boy, runs],
    [boys, run]]}`` of several that are drawn together; ``{B: A}`` lets B draw from A's list, and
    then A and B always differ. The first word of a joint draw decides its split.
    """

    def __init__(self, fillers: Mapping[str, Any], held_out: Mapping[str, Any] | None) -> None:
        self._source: dict[Row, str] = {}
        own: dict[str, tuple[Row, ...]] = {}
        for key, value in fillers.items():
            names = tuple(name.strip() for name in str(key).split(","))
            shared = isinstance(value, str)
            if shared and (value not in fillers or isinstance(fillers[value], str)):
                lists = [k for k, v in fillers.items() if not isinstance(v, str)]
                raise ValueError(
                    f"the fillers of {key!r} name {value!r}, which lists no words"
                    + did_you_mean(str(value), lists)
                )
            if shared and len(str(value).split(",")) != len(names):
                raise ValueError(f"{key!r} and {value!r} do not name as many placeholders")
            self._source[names] = str(value) if shared else str(key)
            if not shared:
                own[str(key)] = _rows(key, value, len(names))
        every = [name for names in self._source for name in names]
        if len(set(every)) != len(every):
            twice = next(name for name in every if every.count(name) > 1)
            raise ValueError(f"the placeholder {twice!r} has two lists of fillers")
        if {"answer", "end"} & set(every):
            raise ValueError("'answer' and 'end' name places; call the placeholder otherwise")
        self.names = tuple(every)
        self._rows = {key: _divide(key, rows, held_out or {}) for key, rows in own.items()}
        for key in held_out or {}:
            if key not in own:
                raise ValueError(
                    f"held_out fillers: {key!r} lists no words of its own"
                    + did_you_mean(str(key), own)
                )

    def check(self, answer: str, split: Split) -> None:
        """Refuse lists that are too short for a prompt and its corrupted twin.

        Raises:
            ValueError: Naming the list, the split and the number of words it needs.
        """
        for source in set(self._source.values()):
            needed = self._needed(source, answer)
            have = len(self._rows[source][split])
            if have < needed:
                raise ValueError(
                    f"the fillers of {source!r} need at least {needed} different entries for "
                    f"the {split} split, and it has {have}; list more of them"
                )

    def draw(self, rng: random.Random, answer: str, split: Split) -> tuple[dict, dict]:
        """The words of a prompt, and those of its corrupted twin.

        They differ in the answer and in what is drawn together with it.
        """
        clean: dict[str, str] = {}
        other: dict[str, str] = {}
        for source in dict.fromkeys(self._source.values()):
            groups = [names for names, key in self._source.items() if key == source]
            needed = self._needed(source, answer)
            rows = _differing(rng, self._rows[source][split], needed, source)
            for names, row in zip(groups, rows, strict=False):
                clean |= dict(zip(names, row, strict=True))
                if answer in names:
                    other |= dict(zip(names, rows[-1], strict=True))
        return clean, {**clean, **other}

    def partners(self, answer: str) -> Row:
        """The placeholders that are drawn together with the answer, itself included."""
        return next(names for names in self._source if answer in names)

    def _needed(self, source: str, answer: str) -> int:
        groups = [names for names, key in self._source.items() if key == source]
        return len(groups) + any(answer in names for names in groups)


def _rows(key: str, value: object, width: int) -> tuple[Row, ...]:
    """Normalised entries of a list of fillers."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"the fillers of {key!r} must be a list, got {value!r}")
    rows = []
    for entry in value:
        row = (entry,) if isinstance(entry, str) else entry
        if not isinstance(row, Sequence) or not all(isinstance(word, str) for word in row):
            raise ValueError(
                f"the fillers of {key!r} hold {entry!r}, which is not text (quote it: YAML reads "
                "yes, no and numbers as something else)"
            )
        if len(row) != width or not all(word.strip() for word in row):
            raise ValueError(f"the fillers of {key!r} need {width} words per entry, got {entry!r}")
        rows.append(tuple(row))
    if len(set(rows)) != len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise ValueError(f"the fillers of {key!r} hold {', '.join(twice)!r} twice")
    return tuple(rows)


def _divide(
    key: str, rows: tuple[Row, ...], held_out: Mapping[str, Any]
) -> dict[Split, tuple[Row, ...]]:
    if key not in held_out:
        return partition(rows, lambda row: row[0])
    others = _rows(key, held_out[key], len(rows[0]))
    both = {row[0] for row in rows} & {row[0] for row in others}
    if both:
        raise ValueError(f"the filler {min(both)!r} of {key!r} is in both splits")
    return {"train": rows, "held_out": others}


def _differing(rng: random.Random, rows: tuple[Row, ...], number: int, source: str) -> list[Row]:
    """Random rows that differ in every place."""
    for _ in range(100):
        chosen: list[Row] = []
        for row in rng.sample(rows, len(rows)):
            if all(a != b for taken in chosen for a, b in zip(taken, row, strict=True)):
                chosen.append(row)
            if len(chosen) == number:
                return chosen
    raise ValueError(
        f"the fillers of {source!r} hold no {number} entries that differ in every place; list "
        "more of them"
    )
