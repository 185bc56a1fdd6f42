"""The documents of a source, one after the other; a file is never in memory as a whole.

    FILE.txt, .text, .md, no suffix   UTF-8, documents separated by lines `<|endoftext|>`
    FILE.jsonl, .ndjson               an object a line with `text`, or with `messages` (a conversation)
    FILE.parquet                      a column `text` or `messages`
    hf:NAME[@CONFIG][:SPLIT]          a data set of the Hub, or of a local folder, through `datasets`

Text and JSON lines may be compressed: .gz, .bz2, .xz. A conversation is a list of {"role", "content"}, oldest
first; other keys of a message are not read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from bitnet.errors import FormatError, InputError, ResourceError, UnsupportedError
from bitnet.json_file import parse_json_object

SEPARATOR = "<|endoftext|>"
Message = dict[str, str]
Document = str | list[Message]

_TEXT, _LINES, _TABLE = ("", ".txt", ".text", ".md"), (".jsonl", ".ndjson"), (".parquet",)
_COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LONGEST = 64 << 20  # bytes of one document: encoding takes some 30 times as much memory
_ROWS = 1024  # of a table at a time


@dataclass
class Source:
    """One input.

    Attributes:
        name: a path, or `hf:NAME[@CONFIG][:SPLIT]`.
        position: bytes of the file that have been read so far; `size` at the end.
    """

    name: str
    position: int = 0

    @property
    def size(self) -> int | None:
        """Bytes of the file; None where only the end tells.

        Raises:
            FormatError: there is no such file.
        """
        if self.name.startswith("hf:"):
            return None
        try:
            return Path(self.name).stat().st_size
        except OSError as error:
            raise FormatError(f"{self.name}: {(error.strerror or str(error)).lower()}") from None

    def documents(self) -> Iterator[Document]:
        """Every document in order, empty ones too; what is wrong with the name is raised at once.

        Raises:
            FormatError: the source is missing or damaged; the message names the line or row.
            UnsupportedError: a kind of file that is not read.
            InputError: a folder, or a malformed `hf:` name.
            ResourceError: a package of the extra `data` is missing, or the data set cannot be had.
        """
        if self.name.startswith("hf:"):
            return self._hub(*_parse_hub_name(self.name))
        path = Path(self.name)
        if not path.exists():
            raise FormatError(f"{path}: not found")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the files in it")
        kind = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
        if path.suffix in _TABLE:
            return self._table(path)
        if kind in _LINES:
            return self._json_lines(path)
        if kind in _TEXT:
            return self._text(path)
        known = ", ".join((*_TEXT[1:], *_LINES, *_TABLE))
        raise UnsupportedError(
            f"{path}: files ending in {path.suffix} are not read; known are {known}, "
            f"and text or lines compressed as {', '.join(_COMPRESSED)}"
        )

    def _text(self, path: Path) -> Iterator[str]:
        lines: list[str] = []
        first, length, begun = 1, 0, False
        for number, raw in self._lines(path):
            line = _decode(raw, path, number).removesuffix("\n").removesuffix("\r")
            if line != SEPARATOR:
                lines.append(line)
                length += len(raw)
                if length > _LONGEST:
                    raise FormatError(
                        f"{path}: the document that begins in line {first} is longer than "
                        f"{_LONGEST >> 20} MiB; separate documents by lines {SEPARATOR}"
                    )
                continue
            document = "\n".join(lines).strip("\n")
            if document or begun:  # what stands before the first separator need not be a document
                yield document
            lines, first, length, begun = [], number + 1, 0, True
        if document := "\n".join(lines).strip("\n"):
            yield document

    def _json_lines(self, path: Path) -> Iterator[Document]:
        for number, raw in self._lines(path):
            if raw.strip():
                where = f"{path}: line {number}"
                yield _of_row(parse_json_object(raw, where), where)

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """The numbered lines of a file that may be compressed."""
        with _reading(path), path.open("rb") as raw:
            opened = _COMPRESSED.get(path.suffix)
            file: IO[bytes] = opened(raw) if opened else raw
            number = 0
            while line := file.readline(_LONGEST + 1):
                number += 1
                if len(line) > _LONGEST:
                    raise FormatError(f"{path}: line {number} is longer than {_LONGEST >> 20} MiB")
                self.position = raw.tell()
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line

    def _table(self, path: Path) -> Iterator[Document]:
        _require("pyarrow", str(path))
        import pyarrow
        import pyarrow.parquet

        size = self.size or 0
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                column = _column(file.schema_arrow.names, str(path))
                number = 0
                for rows in file.iter_batches(batch_size=_ROWS, columns=[column]):
                    for value in rows.column(0).to_pylist():
                        number += 1
                        yield _of_row({column: value}, f"{path}: row {number}")
                    self.position = size * number // max(1, file.metadata.num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise FormatError(f"{path}: not readable as parquet ({_line(error)})") from None

    def _hub(self, name: str, config: str | None, split: str) -> Iterator[Document]:
        _require("datasets", self.name)
        import datasets

        number = 0
        try:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
            for number, row in enumerate(rows, 1):
                yield _of_row(row, f"{self.name}: row {number}")
        except FormatError:
            raise
        except Exception as error:  # the library's and its readers' errors have no common class
            raise ResourceError(f"{self.name}: cannot be read after row {number} ({_line(error)})") from None


def texts(document: Document) -> list[str]:
    """The text of a document, or of each message of a conversation."""
    return [document] if isinstance(document, str) else [message["content"] for message in document]


def _of_row(row: Mapping[str, Any], where: str) -> Document:
    column = _column(row, where)
    value = row[column]
    if column == "text":
        return _check_text(value, where, "text")
    if not isinstance(value, list) or not value:
        raise FormatError(f'{where}: messages is no list of {{"role": …, "content": …}}')
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise FormatError(f"{where}: messages holds a {type(message).__name__}, expected an object")
        messages.append({key: _check_text(message.get(key), where, key) for key in ("role", "content")})
    return messages


def _parse_hub_name(text: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of `hf:NAME[@CONFIG][:SPLIT]`."""
    whole, _, split = text.removeprefix("hf:").partition(":")
    name, _, config = whole.partition("@")
    if not name:
        raise InputError(f"{text}: names no data set; write hf:NAME, hf:NAME:SPLIT or hf:NAME@CONFIG:SPLIT")
    return name, config or None, split or "train"


def _column(names: Iterable[str], where: str) -> str:
    columns = list(names)
    found = [name for name in ("text", "messages") if name in columns]
    if len(found) != 1:
        have = "both" if found else ", ".join(columns) or "nothing"
        raise FormatError(f"{where}: needs either text or messages, has {have}")
    return found[0]


def _check_text(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{where}: {key} is {type(value).__name__}, expected text")
    if len(value) > _LONGEST:
        raise FormatError(f"{where}: {key} is longer than {_LONGEST >> 20} MiB; split it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {key} holds half a surrogate pair ({error.reason})") from None
    return value


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: line {number}: not UTF-8 ({error.reason})") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FormatError(f"{path}: not found") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, ResourceError):
            raise
        raise FormatError(f"{path}: cannot be read ({_line(error)})") from None


def _require(package: str, where: str) -> None:
    if find_spec(package) is None:
        raise ResourceError(
            f"{where}: reading it needs {package}; pip install 'bitnet-ternary[data]' brings it"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
