"""Where heads attend on one prompt, as a page shows it: tokens as text, attention in 255ths."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.circuits import Head

LONGEST = 128
"""Tokens of a prompt that are shown; more of them no eye can follow."""
CAPTURED_BYTES = 2**30
"""Of patterns that are captured at once; large models take several passes."""

_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


@torch.no_grad()
def shown_patterns(
    backend: Backend, tokens: Int[Tensor, "1 pos"], heads: Sequence[Head], start: int = 0
) -> UInt8[Tensor, "head pair"]:
    """Attention among the tokens from `start` on, in 255ths.

    Pairs (query, key) stand query by query: (0, 0), (1, 0), (1, 1), (2, 0).
    """
    stop = tokens.shape[1]
    queries = torch.arange(start, stop, device=tokens.device)[None]
    row, column = torch.tril_indices(stop - start, stop - start, device=tokens.device)
    most = max(1, CAPTURED_BYTES // (4 * (stop - start) * stop))
    parts = []
    for first in range(0, len(heads), most):
        with (
            probe_mode(backend.model),
            backend.capture(Sites(pattern=tuple(heads[first : first + most])), queries) as captured,
        ):
            backend.forward(tokens)
        shown = captured.pattern[0, :, row, start + column]
        parts.append((255 * shown).round().to(torch.uint8).cpu())
    return torch.cat(parts)


def packed(patterns: UInt8[Tensor, "*head pair"]) -> str:
    """Patterns as base64, head by head."""
    return base64.b64encode(patterns.numpy().tobytes()).decode()


def token_text(tokenizer: Any, token: int) -> str:
    """A token as readable text, see `visible`. Without a text it is the token's number."""
    return visible(token_string(tokenizer, token))


def token_string(tokenizer: Any, token: int) -> str:
    """A token as it stands in the text, its blanks included.

    Bytes that are part of a character are single surrogates, as of ``surrogateescape``. Without a
    text it is the token's number.
    """
    if tokenizer is None:
        return str(token)
    piece = tokenizer.convert_ids_to_tokens(token)
    if not piece:
        return f"#{token}"
    if token in tokenizer.all_special_ids:
        return piece
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    if byte:
        return _decoded(bytes.fromhex(byte[1]))
    if "Ġ" not in tokenizer.convert_tokens_to_string(["Ġ"]):  # pieces are spelled in bytes
        alphabet = _byte_alphabet()
        if all(sign in alphabet for sign in piece):
            return _decoded(bytes(alphabet[sign] for sign in piece))
    return piece.replace("▁", " ")


def _decoded(content: bytes) -> str:
    """UTF-8; bytes that are no whole character become single surrogates."""
    return content.decode("utf-8", "surrogateescape")


def visible(text: str) -> str:
    """Text with signs for blanks, and escapes for what has no shape of its own.

    ``␣`` is a blank, ``↵`` a line break, ``⇥`` a tab, ``\\xe2`` a byte that is part of a character,
    ``\\u200b`` a character that is not printed.
    """
    return "".join(_SIGNS.get(sign) or _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    if sign.isprintable():
        return sign
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as `_decoded` left it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}"


def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level tokenizers spell bytes.

    Printable ones of Latin-1 stand for themselves, the others for those from U+0100 on.

    Source:
        Radford et al. 2019, the vocabulary of GPT-2.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    spelled = {chr(byte): byte for byte in own}
    return spelled | {chr(256 + number): byte for number, byte in enumerate(others)}
