"""Ids to text, one id at a time, for streaming.

The contract of every detokenizer: no piece ends within a UTF-8 character, and the pieces together equal
the text of all ids at once. `tokenizers.DecodeStream` promises neither: it drops what it holds back at
the end, and after bytes that are no UTF-8 it decodes an ever longer tail again.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Protocol

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer(Protocol):
    """Turns one stream of ids into text."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What was held back; unfinished characters become U+FFFD. The stream is over then."""
        ...


class ByteLevelDetokenizer:
    """For byte-level BPE, where a token is a run of bytes (Llama 3, GPT-2)."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class RunDetokenizer:
    """For SentencePiece-like vocabularies, where characters outside it are spelled in `<0x..>` tokens.

    Such a run decodes as a whole (one bad byte spoils all of it), so it is held until an ordinary token
    ends it. Each run is decoded behind the token before it, because decoders treat the first token of a
    text differently (its leading space goes).
    """

    def __init__(self, decode: Callable[[list[int]], str], token_text: Callable[[int], str | None]) -> None:
        self._decode = decode
        self._token_text = token_text
        self._anchor: list[int] = []
        self._run: list[int] = []

    def push(self, token: int) -> str:
        text = self._token_text(token)
        if text is None:  # a hole in the vocabulary decodes to nothing
            return ""
        self._run.append(token)
        if _BYTE_TOKEN.fullmatch(text):
            return ""
        piece = self._release()
        self._anchor = [token]
        return piece

    def finish(self) -> str:
        return self._release()

    def _release(self) -> str:
        before = self._decode(self._anchor) if self._anchor else ""
        piece = self._decode(self._anchor + self._run)[len(before) :] if self._run else ""
        self._run = []
        return piece


def byte_level_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 bytes stand for themselves, the others for the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
