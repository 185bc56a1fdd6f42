"""GGUF's container: header, keys and values, tensor table, data.

    "GGUF"  version u32  tensors u64  keys u64
    keys:     key string, value type u32, value        string: length u64, UTF-8
                                                       array: element type u32, count u64, elements
    tensors:  name string, axes u32, size u64 of each (contiguous one first), type u32, offset u64
    data:     from the next multiple of general.alignment (32) on; offsets count from there

Nothing is believed: every count and length is held against what is left of the file before it is used, and
nothing is allocated in proportion to a number in the file. The tensors' data is mapped and not read.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.gguf.block_types import BlockType, block_type
from bitnet.formats.gguf.metadata import ARRAY, BOOL, SCALARS, STRING, Metadata, StringArray, Value

MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 << 20
_LARGEST_HEADER = 100_000_000  # bytes before the data; 2B4T's vocabulary takes 8 million
_MOST_KEYS = _MOST_TENSORS = 1 << 16  # a thousand layers have 11,000 tensors
_MOST_AXES = 4
_LONGEST_STRING = 1 << 24  # bytes of a value; a decoded one can take six times as much
_LONGEST_NAME = 1 << 10  # bytes; llama.cpp's tensor names have less than 64
_SHORTEST_KEY = 8 + 4 + 1  # bytes of an unnamed byte
_SHORTEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the tensor table.

    Attributes:
        shape: row-major, the last axis contiguous; the file lists the axes the other way round.
        raw: uint8, its bytes in the mapped file.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]


@dataclass(frozen=True)
class Container:
    """A file's keys and its tensors, by name."""

    metadata: Metadata
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Whether an existing file is named as GGUF or begins like it."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_container(path: Path) -> Container:
    """Open a file and check its structure.

    Raises:
        FormatError: it is missing, cut off, damaged or contradicts itself.
        UnsupportedError: a version, byte order or tensor type that is not read.
    """
    try:
        with path.open("rb") as file:
            buffer: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        buffer = b""
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None
    cursor = _Cursor(buffer, str(path))
    tensor_count, key_count = _read_counts(cursor)
    metadata = _read_metadata(cursor, key_count)
    entries = _read_tensor_table(cursor, tensor_count)
    alignment = _alignment(metadata)
    data_start = (cursor.place + alignment - 1) // alignment * alignment
    return Container(metadata, _place_tensors(buffer, entries, data_start, alignment, str(path)))


class _Cursor:
    """A place in the header that never leaves it."""

    def __init__(self, buffer: mmap.mmap | bytes, where: str) -> None:
        self.buffer, self.where, self.place = buffer, where, 0
        self.limit = min(len(buffer), _LARGEST_HEADER)

    def skip(self, count: int, what: str) -> int:
        """Move over `count` bytes; the place where they start."""
        if count > self.limit - self.place:
            raise FormatError(
                f"{self.where}: {what} needs {count:,} bytes at {self.place:,}, but "
                + (
                    f"the file ends at {self.limit:,}; download it again"
                    if self.limit == len(self.buffer)
                    else f"no header of a model is longer than {self.limit:,}"
                )
            )
        self.place += count
        return self.place - count

    def unsigned(self, size: int, what: str) -> int:
        start = self.skip(size, what)
        return int.from_bytes(self.buffer[start : start + size], "little")

    def name(self, what: str) -> str:
        """A key or a tensor's name: short and printable, because messages repeat it."""
        start = self.place
        length = self.unsigned(8, what)
        if length > _LONGEST_NAME:
            raise FormatError(f"{self.where}: {what} has {length:,} bytes; expected at most {_LONGEST_NAME}")
        self.place = start
        name = self.string(what)
        if not name.isprintable():
            raise FormatError(f"{self.where}: {what} is {name!r}, which cannot be printed")
        return name

    def string(self, what: str) -> str:
        length = self.unsigned(8, what)
        if length > _LONGEST_STRING:
            raise FormatError(
                f"{self.where}: {what} has {length:,} bytes; expected at most {_LONGEST_STRING:,}"
            )
        start = self.skip(length, what)
        try:
            return self.buffer[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{self.where}: {what} is not UTF-8") from None

    def require(self, count: int, least: int, what: str) -> None:
        """Refuse a count of items that could not fit, before anything is done for each."""
        if count > (self.limit - self.place) // least:
            raise FormatError(f"{self.where}: announces {count:,} {what}, more than the file can hold")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    start = cursor.skip(4, "the magic")
    magic = cursor.buffer[start : start + 4]
    if magic != MAGIC:
        raise FormatError(f"{cursor.where}: begins with {magic!r}; a GGUF file begins with {MAGIC!r}")
    version = cursor.unsigned(4, "the version")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version:
            raise UnsupportedError(
                f"{cursor.where}: a big-endian GGUF file; take the little-endian one, or convert it with "
                "llama.cpp's gguf_convert_endian.py"
            )
        raise UnsupportedError(f"{cursor.where}: version {version} of GGUF; readable are 2 and 3")
    tensors, keys = cursor.unsigned(8, "the number of tensors"), cursor.unsigned(8, "the number of keys")
    for count, least, most, what in (
        (keys, _SHORTEST_KEY, _MOST_KEYS, "keys"),
        (tensors, _SHORTEST_TENSOR, _MOST_TENSORS, "tensors"),
    ):
        cursor.require(count, least, what)
        if count > most:
            raise FormatError(f"{cursor.where}: announces {count:,} {what}; no model has more than {most:,}")
    return tensors, keys


def _read_metadata(cursor: _Cursor, count: int) -> Metadata:
    values: dict[str, Value] = {}
    for number in range(count):
        key = cursor.name(f"key {number}")
        if key in values:
            raise FormatError(f"{cursor.where}: the key {key!r} stands there twice")
        values[key] = _read_value(cursor, cursor.unsigned(4, f"the type of {key!r}"), repr(key))
    return Metadata(values, cursor.where)


def _read_value(cursor: _Cursor, kind: int, what: str) -> Value:
    if kind == STRING:
        return cursor.string(what)
    if kind == ARRAY:
        return _read_array(cursor, what)
    dtype = _scalar_type(cursor, kind, what)
    start = cursor.skip(dtype.itemsize, what)
    item = np.frombuffer(cursor.buffer[start : cursor.place], dtype)[0].item()
    if kind == BOOL:
        if item not in (0, 1):
            raise FormatError(f"{cursor.where}: {what} is the truth value {item}; expected 0 or 1")
        return bool(item)
    value: int | float = item
    return value


def _read_array(cursor: _Cursor, what: str) -> Value:
    kind = cursor.unsigned(4, what)
    count = cursor.unsigned(8, what)
    if kind == ARRAY:
        raise FormatError(f"{cursor.where}: {what} is an array of arrays, which no model needs")
    if kind == STRING:
        cursor.require(count, 8, f"strings in {what}")
        start = cursor.place
        for _ in range(count):
            cursor.skip(cursor.unsigned(8, what), what)
        return StringArray(cursor.buffer, count, start, cursor.place)
    dtype = _scalar_type(cursor, kind, what)
    cursor.require(count, dtype.itemsize, f"numbers in {what}")
    start = cursor.skip(count * dtype.itemsize, what)
    if count == 0:
        return np.empty(0, dtype)
    return np.frombuffer(cursor.buffer, dtype, count, start)


def _scalar_type(cursor: _Cursor, kind: int, what: str) -> np.dtype[np.generic]:
    if kind not in SCALARS:
        raise FormatError(f"{cursor.where}: {what} has the value type {kind}; known are 0 to 12")
    return SCALARS[kind]


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment")
    if alignment is None:
        return _DEFAULT_ALIGNMENT
    if not 8 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise FormatError(
            f"{metadata.where}: general.alignment is {alignment}; expected a power of two from 8 to "
            f"{_LARGEST_ALIGNMENT}"
        )
    return alignment


@dataclass(frozen=True)
class _Entry:
    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int


def _read_tensor_table(cursor: _Cursor, count: int) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for number in range(count):
        name = cursor.name(f"the name of tensor {number}")
        where = f"{cursor.where}: {name}"
        if name in entries:
            raise FormatError(f"{where} stands there twice")
        axes = cursor.unsigned(4, f"the axes of {name}")
        if not 1 <= axes <= _MOST_AXES:
            raise FormatError(f"{where} has {axes} axes; expected 1 to {_MOST_AXES}")
        shape = tuple(cursor.unsigned(8, f"the shape of {name}") for _ in range(axes))[::-1]
        if 0 in shape or math.prod(shape) >= 1 << 63:
            raise FormatError(f"{where} has the impossible shape {list(shape)}")
        kind = block_type(cursor.unsigned(4, f"the type of {name}"), where)
        entries[name] = _Entry(name, shape, kind, cursor.unsigned(8, f"the offset of {name}"))
    return list(entries.values())


def _place_tensors(
    buffer: mmap.mmap | bytes, entries: list[_Entry], data_start: int, alignment: int, where: str
) -> dict[str, StoredTensor]:
    """The tensors' bytes, each inside the file and none inside another."""
    file = np.frombuffer(buffer, np.uint8) if len(buffer) else np.empty(0, np.uint8)
    tensors = {}
    free, before = data_start, ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        name = f"{where}: {entry.name}"
        if entry.offset % alignment:
            raise FormatError(
                f"{name} starts at {entry.offset}, which is no multiple of {alignment} (alignment)"
            )
        start = data_start + entry.offset
        end = start + entry.type.size(entry.shape, name)
        if start < free:
            raise FormatError(f"{name} starts inside {before}; the file is damaged")
        if end > len(buffer):
            raise FormatError(
                f"{name} ends at {end:,}, but the file at {len(buffer):,}; it is cut off: download it again"
            )
        tensors[entry.name] = StoredTensor(entry.name, entry.type, entry.shape, file[start:end])
        free, before = end, entry.name
    return {entry.name: tensors[entry.name] for entry in entries}
