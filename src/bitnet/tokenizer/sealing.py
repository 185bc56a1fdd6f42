"""Keeping control tokens out of what users write.

A chat template renders messages to one string in which `<|eot_id|>` means the end of a turn. A user who
writes that string must not end the turn. After rendering nobody can tell the two apart, so the user's
occurrences are sealed before: their first character becomes a private-use character found in no message.
The template's own control tokens are then the only ones left; the text between them is unsealed and
encoded with control tokens switched off.

A content could also supply only a part and find the rest in the template or the next message
(`<|eot` + `_id|>`), so a head or tail that continues a control token is sealed as well. Everything else
passes unchanged, because templates may look into contents (`'</think>' in content`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitnet.errors import InputError

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_PRIVATE_USE = range(0x100000, 0x10FFFE)  # plane 16: no text means anything by it


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation in which the users' control tokens are still sealed.

    Attributes:
        sealed: the rendered text.
        seals: private-use character -> the character it stands for.
    """

    sealed: str
    seals: Mapping[str, str]

    @property
    def text(self) -> str:
        """The text as the template meant it."""
        return self.unseal(self.sealed)

    def unseal(self, text: str) -> str:
        """Put the sealed characters of a part of `sealed` back."""
        return text.translate({ord(seal): char for seal, char in self.seals.items()})


def _begins_another(part: str, words: Sequence[str]) -> bool:
    """Whether one of the sorted words begins with `part` and is longer."""
    at = bisect_right(words, part)
    return at < len(words) and words[at].startswith(part)


class ControlTokens:
    """The control tokens of a vocabulary, as strings to find and to seal."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = sorted(filter(None, tokens), key=len, reverse=True)
        # A look-ahead finds overlapping occurrences too: sealing one must not leave the other.
        self._starts = re.compile(f"(?={'|'.join(map(re.escape, self._tokens))})" if self._tokens else "(?!)")
        # Sorted, to be searched: all their heads and tails would take the square of a token's length.
        self._forwards = sorted(self._tokens)
        self._backwards = sorted(token[::-1] for token in self._tokens)
        self._longest = max(map(len, self._tokens), default=0)

    def seal(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], dict[str, str]]:
        """Copies of the messages with sealed contents, and the seals used.

        Raises:
            InputError: a message is not {"role": name, "content": text}.
        """
        _check(messages)
        places = [self._risky(message["content"]) for message in messages]
        chars = sorted({m["content"][at] for m, found in zip(messages, places, strict=True) for at in found})
        taken = {char for message in messages for char in message["content"] if ord(char) in _PRIVATE_USE}
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        seal_of = dict(zip(chars, free, strict=False))
        sealed = []
        for message, found in zip(messages, places, strict=True):
            content = list(message["content"])
            for at in found:
                content[at] = seal_of[content[at]]
            sealed.append({**message, "content": "".join(content)})
        return sealed, {seal: char for char, seal in seal_of.items()}

    def _risky(self, content: str) -> set[int]:
        """Positions whose sealing leaves no control token, nor a part of one at either end."""
        places = {match.start() for match in self._starts.finditer(content)}
        start = len(content) - len(content.lstrip())  # templates strip contents
        end = len(content.rstrip())
        for n in range(1, min(self._longest, end - start + 1)):
            if _begins_another(content[end - n : end], self._forwards):
                places.add(end - n)
            if _begins_another(content[start : start + n][::-1], self._backwards):
                places.add(start + n - 1)
        return places


def _check(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise InputError("messages is empty; a chat needs at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InputError(f'messages[{number}] is not of the form {{"role": name, "content": text}}')
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise InputError(
                f"messages[{number}]: role is {role!r}; use 'system', 'user' or 'assistant' "
                "(letters, digits, - and _)"
            )
        if not isinstance(content, str):
            raise InputError(f"messages[{number}]: content is {type(content).__name__}, expected text")
