"""Templates with ``{placeholders}``: filling them, and finding the fillers among the tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuitkeep.probes.base import ProbeContext


@dataclass(frozen=True)
class Prompt:
    """A filled template and where its placeholders stand, in characters."""

    text: str
    template: str
    spans: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Span:
    """The tokens ``start`` to ``stop - 1`` that occurrence `number` of a placeholder covers."""

    placeholder: str
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt's tokens, BOS included, and its spans, the answer's last.

    Attributes:
        tokens: Token numbers.
        spans: All placeholders' occurrences, left to right.
        template: Where the prompt comes from, for error messages.
    """

    tokens: tuple[int, ...]
    spans: tuple[Span, ...]
    template: str

    @property
    def answer(self) -> Span:
        """The last occurrence: templates end with it."""
        return self.spans[-1]


def placeholders(template: str) -> tuple[str, ...]:
    """The names in braces, left to right, repeated as they are repeated.

    Raises:
        ValueError: If a brace is not part of a ``{name}``.
    """
    pieces = re.split(r"\{(\w+)\}", template)
    if any(brace in text for text in pieces[::2] for brace in "{}"):
        raise ValueError(f"the template {template!r} has a brace that is no part of a '{{name}}'")
    return tuple(pieces[1::2])


def fill(template: str, filler: Callable[[str, int], str]) -> Prompt:
    """Put ``filler(name, position among all placeholders)`` into every placeholder."""
    text, spans = "", []
    for position, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        if position % 2:
            word = filler(piece, position // 2)
            spans.append((piece, len(text), len(text) + len(word)))
            text += word
        else:
            text += piece
    return Prompt(text, template, tuple(spans))


def tokenize(prompts: Sequence[Prompt], context: ProbeContext) -> list[TokenizedPrompt]:
    """Tokenize prompts and carry their spans over; every prompt ends with its answer.

    A token belongs to a span if it covers a non-blank character of it, so the blank that many
    tokenizers merge into a word's first token does no harm.

    Raises:
        ValueError: If there is no tokenizer, it cannot say where its tokens stand, a prompt is
            longer than the context, or an answer shares its first token with what is before.
    """
    tokenizer = context.tokenizer
    if tokenizer is None:
        raise ValueError(
            "Templates needs a tokenizer, and this context has none; pass "
            "ProbeContext(tokenizer=...), or probe with RepeatedTokens"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"Templates needs a tokenizer that says where its tokens stand in the text, and "
            f"{type(tokenizer).__name__} does not; load the fast one (AutoTokenizer's default)"
        )
    encoded = tokenizer(
        [prompt.text for prompt in prompts], add_special_tokens=False, return_offsets_mapping=True
    )
    start = () if context.bos_token_id is None else (context.bos_token_id,)
    tokenized = []
    for prompt, ids, offsets in zip(
        prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        tokens = (*start, *ids)
        if len(tokens) > context.context_length:
            raise ValueError(
                f"probe prompt of {len(tokens)} tokens is longer than the model's context of "
                f"{context.context_length}: {prompt.text!r}"
            )
        spans, seen = [], {}
        for name, begin, end in prompt.spans:
            number = seen[name] = seen.get(name, -1) + 1
            first, stop = _token_span(prompt, offsets, begin, end)
            spans.append(Span(name, number, first + len(start), stop + len(start)))
        answer_begin = prompt.spans[-1][1]
        first_token = spans[-1].start - len(start)
        before = prompt.text[offsets[first_token][0] : answer_begin]
        if before.strip():
            raise ValueError(
                f"the tokenizer joins {before!r} and the answer in one token of {prompt.text!r}, "
                "so nothing predicts the answer alone; let the answer begin a new word"
            )
        if spans[-1].start == 0:
            raise ValueError(
                f"nothing stands before the answer of {prompt.template!r}, and the model has no "
                "BOS token to predict it from"
            )
        tokenized.append(TokenizedPrompt(tokens, tuple(spans), prompt.template))
    return tokenized


def _token_span(
    prompt: Prompt, offsets: Sequence[tuple[int, int]], begin: int, end: int
) -> tuple[int, int]:
    covering = [
        index
        for index, (left, right) in enumerate(offsets)
        if prompt.text[max(left, begin) : min(right, end)].strip()
    ]
    if not covering:
        raise ValueError(
            f"no token covers {prompt.text[begin:end]!r} in {prompt.text!r}; fillers must hold "
            "more than blanks, and the tokenizer must not drop them"
        )
    return covering[0], covering[-1] + 1


@dataclass(frozen=True)
class Place:
    """Where a role's queries or keys stand.

    ``answer`` are the positions that predict the answer's tokens, ``end`` the one that predicts
    its first; ``name`` all occurrences of a placeholder, ``name#1`` its second; ``+1`` moves on
    by a token.
    """

    text: str
    name: str
    number: int | None
    shift: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read a place.

        Raises:
            ValueError: If `text` is none.
        """
        match = re.fullmatch(r"(\w+)(?:#(\d+))?([+-]\d+)?", text)
        if match is None or (match[1] in ("answer", "end") and match[2] is not None):
            raise ValueError(
                f"{text!r} is no place in a prompt; write 'answer', 'end', 'name', 'name#0' (its "
                "first occurrence) or 'name#0+1' (the token after)"
            )
        number = None if match[2] is None else int(match[2])
        return cls(text, match[1], number, int(match[3] or 0))

    def find(self, prompt: TokenizedPrompt) -> list[Span]:
        """The spans of this place in a prompt."""
        if self.name in ("answer", "end"):
            answer = prompt.answer
            stop = answer.stop - 1 if self.name == "answer" else answer.start
            found = [Span(answer.placeholder, answer.number, answer.start - 1, stop)]
        else:
            found = [
                span
                for span in prompt.spans
                if span.placeholder == self.name and self.number in (None, span.number)
            ]
        return [
            Span(s.placeholder, s.number, s.start + self.shift, s.stop + self.shift) for s in found
        ]


@dataclass(frozen=True)
class Attention:
    """The keys ``to`` that a head of a role should attend to ``from_`` its queries.

    Attributes:
        from_: The queries.
        to: The keys. Without a number only occurrences before the query's own count.
        by_token: Query token j attends to key token j rather than to all; None: wherever both
            are occurrences of one placeholder. Spans of unequal length are never matched so.
    """

    from_: Place
    to: Place
    by_token: bool | None = None

    def pairs(self, prompt: TokenizedPrompt) -> set[tuple[int, int]]:
        """Query and key positions of the target, causal."""
        pairs = set()
        for query in self.from_.find(prompt):
            for key in self.to.find(prompt):
                same = query.placeholder == key.placeholder
                if same and self.to.number is None and key.number >= query.number:
                    continue
                queries, keys = range(query.start, query.stop), range(key.start, key.stop)
                by_token = same if self.by_token is None else self.by_token
                # 'end' predicts the first token only, and so is matched with the first.
                if by_token and (len(queries) == len(keys) or self.from_.name == "end"):
                    pairs |= set(zip(queries, keys, strict=False))
                else:
                    pairs |= {(q, k) for q in queries for k in keys}
        last = len(prompt.tokens) - 1
        return {(q, k) for q, k in pairs if 0 <= k <= q <= last}
