"""Text in lines of one width: the probe of those who know where a line breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool, Int
from torch import Tensor

from circuitkeep.probes.base import NO_VALUE, Probe, ProbeBatch, ProbeContext, Split
from circuitkeep.probes.lines import Lines, draw_lines
from circuitkeep.probes.rows import check_request


@dataclass(frozen=True)
class LineBreaks(Probe):
    """Text in lines that break where the next word does not fit the row's width.

    Roles: *newline*, from every token of a line to the line break before it; *line*, to the
    tokens of its line before it; *boundary*, from the last token of a line to any earlier line
    break, where the widths of the lines so far can be read.

    Answers are line breaks; the distractor is the next word, which would have come on the same
    line. The variables count characters: *characters* since the last line break, this token's
    included; *width*, and *remaining* of it, from `from_line` on; *next-length*, of the next word,
    at the last token of a word; and *line-length*, at a line break, of the line that it ends.

    Rows of a split have text and widths of that split; see `circuitkeep.probes.line_text`.

    Attributes:
        text: A text file; None for random walks over common words, of which each usually has one
            next word, and which model=linebreaks has learned.
        length: Tokens per row, BOS included.
        widths: Narrowest and widest lines, in characters.
        every: Every so many widths one is held out.
        from_line: Line breaks before the first line whose end is asked for: the width of a row is
            known from its lines alone.
        usage: Seed of which word usually follows which, in the walks.

    Source:
        Gurnee et al. 2025, arXiv:2601.04480, for task, variables and boundary heads.
    """

    text: str | None = None
    length: int = 192
    widths: Sequence[int] = (20, 80)
    every: int = 5
    from_line: int = 3
    usage: int = 0

    def __post_init__(self) -> None:
        widths = tuple(self.widths)
        if len(widths) != 2 or not 1 <= widths[0] <= widths[1]:
            raise ValueError(
                "LineBreaks: widths must be [narrowest, widest] with narrowest >= 1, got "
                f"{list(widths)}"
            )
        object.__setattr__(self, "widths", widths)
        for name, least in (("every", 2), ("from_line", 0), ("length", 2)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"LineBreaks: {name} must be at least {least}, got {getattr(self, name)}"
                )

    @property
    def labels(self) -> tuple[str, ...]:
        """Newline, line and boundary."""
        return ("newline", "line", "boundary")

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Accuracy and the difference to the logit of the next word."""
        return ("accuracy", "logit_difference")

    @property
    def variables(self) -> tuple[str, ...]:
        """Characters, width, remaining, next-length and line-length."""
        return ("characters", "width", "remaining", "next-length", "line-length")

    def at_length(self, length: int) -> LineBreaks:
        """See `Probe.at_length`: more lines."""
        return replace(self, length=length)

    def batch(self, context: ProbeContext, split: Split, rows: int, seed: int) -> ProbeBatch:
        """See `Probe.batch`.

        Raises:
            ValueError: If a row is longer than the context or no line of it is asked for, or there
                is no tokenizer, text or width to make it of.
            OSError: If the file cannot be read.
        """
        check_request(split, rows)
        if self.length > context.context_length:
            raise ValueError(
                f"probe prompt of {self.length} tokens is longer than the model's context of "
                f"{context.context_length}; lower LineBreaks.length"
            )
        lines = draw_lines(
            context.tokenizer,
            rows,
            self.length,
            split,
            seed,
            bos=context.bos_token_id,
            widths=self.widths,
            every=self.every,
            file=self.text,
            usage=self.usage,
        )
        asked = lines.breaks & (lines.line >= self.from_line)
        row, position = asked.nonzero(as_tuple=True)
        if not len(row):
            raise ValueError(
                f"LineBreaks: no row of {self.length} tokens has {self.from_line + 1} line breaks; "
                "raise length, lower from_line or widths"
            )
        return ProbeBatch(
            tokens=lines.tokens.clamp(min=0),
            mask=lines.mask,
            targets=_targets(lines, asked),
            answer_row=row,
            answer_position=position,
            answer=lines.tokens[row, position + 1],
            distractor=lines.next_token[row, position],
            variables=line_variables(lines, self.from_line),
        )


def line_variables(lines: Lines, from_line: int) -> dict[str, Int[Tensor, "row pos"]]:
    """The variables of `LineBreaks`."""
    known = lines.line >= from_line
    remaining = (lines.width - lines.characters).clamp(min=NO_VALUE)
    return {
        "characters": lines.characters,
        "width": lines.width.where(known, NO_VALUE),
        "remaining": remaining.where(known, NO_VALUE),
        "next-length": lines.next_length,
        "line-length": lines.characters.roll(1, 1).where(lines.newline, NO_VALUE),
    }


def _targets(
    lines: Lines, asked: Bool[Tensor, "row pos"]
) -> dict[str, Bool[Tensor, "row query key"]]:
    """The roles of `LineBreaks`."""
    count = lines.line
    text = lines.mask & (lines.characters != NO_VALUE)
    same = (count[:, :, None] == count[:, None, :]) & text[:, :, None] & text[:, None, :]
    before = same.tril(-1)
    return {
        "newline": before & lines.newline[:, None, :],
        "line": before & ~lines.newline[:, None, :],
        "boundary": (asked[:, :, None] & lines.newline[:, None, :]).tril(-1),
    }
