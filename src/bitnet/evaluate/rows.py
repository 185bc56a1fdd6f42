"""Reads evaluation files: JSON lines or text, as they are, compressed, or several in one .zip.

Nothing is larger in memory than the file that is read; what a compressed one unpacks to is limited.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bitnet.errors import FormatError
from bitnet.json_file import parse_json_object

_COMPRESSED: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LARGEST = 1 << 30  # bytes of a file as it is unpacked; the largest set that is usual has 30 MB
_BROKEN = (
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    RuntimeError,  # an encrypted .zip
    NotImplementedError,  # a compression that zipfile does not know
)


@dataclass(frozen=True)
class Row:
    """One object of a JSON lines file; `where` is "FILE: line N"."""

    where: str
    values: dict[str, Any]

    def text(self, key: str, *, empty: bool = False) -> str:
        """The string under `key`.

        Raises:
            FormatError: it is missing, no string or, unless `empty`, without any character.
        """
        value = self.values.get(key)
        if not isinstance(value, str):
            raise FormatError(f"{self.where}: {key} is {_kind(value)}, expected a string")
        if not value and not empty:
            raise FormatError(f"{self.where}: {key} is empty")
        self._check_characters(key, value)
        return value

    def texts(self, key: str) -> list[str]:
        """The list of two or more strings under `key`, none of them empty.

        Raises:
            FormatError: it is something else.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) < 2:
            raise FormatError(
                f"{self.where}: {key} is {_kind(value)}, expected a list of two or more strings"
            )
        for place, item in enumerate(value):
            if not isinstance(item, str) or not item:
                raise FormatError(f"{self.where}: {key}[{place}] is {_kind(item)}, expected a string")
            self._check_characters(f"{key}[{place}]", item)
        return value

    def _check_characters(self, key: str, value: str) -> None:
        # JSON can spell what UTF-8, and so a tokenizer, cannot
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise FormatError(f"{self.where}: {key} holds half a surrogate pair, which is no character")

    def index(self, key: str, count: int) -> int:
        """The whole number 0..count-1 under `key`.

        Raises:
            FormatError: it is something else.
        """
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise FormatError(f"{self.where}: {key} is {_kind(value)}, expected a number in 0..{count - 1}")
        return value


def read_rows(path: Path) -> Iterator[list[Row]]:
    """The rows of each JSON lines file in `path`: one, or all members of a .zip that end in .jsonl.

    Raises:
        FormatError: a file is missing, damaged, empty, or a line is no JSON object.
    """
    for where, content in _contents(path, (".jsonl", ".ndjson", ".json")):
        lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
        if not lines:
            raise FormatError(f"{where}: holds no rows")
        rows = []
        for number, line in lines:
            place = f"{where}: line {number}"
            rows.append(Row(place, parse_json_object(line, place)))
        yield rows


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        FormatError: it is missing, damaged, or no UTF-8.
    """
    ((where, content),) = _contents(path, None)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}; convert it first") from None


def _contents(path: Path, members: tuple[str, ...] | None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the file or, where `members` names endings, of each such member of a .zip."""
    if not path.is_file():
        raise FormatError(f"{path}: " + ("not a file" if path.exists() else "not found"))
    try:
        if path.suffix == ".zip" and members is not None:
            yield from _members(path, members)
            return
        opened = _COMPRESSED.get(path.suffix, Path.open)(path, "rb")
        with opened as file:
            yield str(path), _content(file, str(path))
    except _BROKEN as error:
        raise FormatError(f"{path}: cannot be read ({error})") from None


def _members(path: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        # macOS puts a folder of resource forks beside the files, with the same endings
        names = [n for n in archive.namelist() if n.endswith(endings) and not n.startswith("__MACOSX/")]
        if not names:
            raise FormatError(f"{path}: holds no file that ends in {' or '.join(endings)}")
        for name in sorted(names):
            with archive.open(name) as file:
                yield f"{path}: {name}", _content(file, f"{path}: {name}")


def _content(file: IO[bytes], where: str) -> bytes:
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise FormatError(f"{where}: is larger than {_LARGEST:,} bytes; split it")
    return content


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"a {type(value).__name__} of {shown[:40]}…"
