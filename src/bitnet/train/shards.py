"""Prepared text on disk and in memory: token ids in shards, described by a manifest (docs/data.md).

    manifest.json     version, tokenizer, vocab_size, dtype, separator, and the shards of every split
    train-00000.bin   the ids of whole documents, little-endian uint16 or uint32, the separator before each
    train-00000.idx   where each document's separator begins in the .bin, in ids, little-endian uint64
    tokenizer.json    what the ids are of

A `Corpus` joins the shards of one split to one ring of ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, InputError, UnsupportedError
from bitnet.json_file import read_json_object

MANIFEST, TOKENIZER, VERSION = "manifest.json", "tokenizer.json", 1
Ids = NDArray[np.uint16] | NDArray[np.uint32]
Dtype = Literal["uint16", "uint32"]


def dtype_for(vocab_size: int) -> Dtype:
    """The narrower type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class Shard:
    """One pair of files.

    Attributes:
        file: name of the ids' file in the folder.
        tokens, documents: their numbers; separators count as tokens.
        text_bytes: UTF-8 bytes of the documents.
        sha256, index_sha256: of the two files.
    """

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """Name of the document starts' file."""
        return self.file.removesuffix(".bin") + ".idx"


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        tokenizer_sha256: of the bytes of tokenizer.json beside it.
        vocab_size: ids are below it.
        separator: the ids before every document.
        splits: by name, their shards in order.
    """

    tokenizer_sha256: str
    vocab_size: int
    dtype: Dtype
    separator: tuple[int, ...]
    splits: Mapping[str, tuple[Shard, ...]]

    def to_dict(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "version": VERSION,
            "tokenizer_sha256": self.tokenizer_sha256,
            "vocab_size": self.vocab_size,
            "dtype": self.dtype,
            "separator": list(self.separator),
            "splits": {name: [vars(shard) for shard in shards] for name, shards in self.splits.items()},
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a prepared folder.

        Raises:
            FormatError: it is missing, damaged, or contradicts itself.
            UnsupportedError: a later version of the format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FormatError(f"{folder}: has no {MANIFEST}; `bitnet prepare` writes such folders")
        values = read_json_object(path)
        if values.get("version") != VERSION or values["version"] is True:
            raise UnsupportedError(
                f"{path}: version is {values.get('version')!r}, this program reads {VERSION}; prepare it anew"
            )
        fields = _Fields(values, str(path))
        vocab_size = fields.count("vocab_size")
        if fields.text("dtype") != dtype_for(vocab_size):
            raise FormatError(
                f"{path}: dtype is {values['dtype']!r}; a vocab_size of {vocab_size} "
                f"has {dtype_for(vocab_size)}"
            )
        separator = values.get("separator")
        if not isinstance(separator, list) or not separator or not all(type(i) is int for i in separator):
            raise FormatError(f"{path}: separator is {separator!r}, expected a list of ids")
        if not all(0 <= number < vocab_size for number in separator):
            raise FormatError(f"{path}: separator {separator} lies beyond vocab_size {vocab_size}")
        splits = values.get("splits")
        if not isinstance(splits, dict) or not splits:
            raise FormatError(f"{path}: splits is missing or empty")
        return cls(
            fields.text("tokenizer_sha256"),
            vocab_size,
            dtype_for(vocab_size),
            tuple(separator),
            {name: _shards(name, items, path) for name, items in splits.items()},
        )


class Corpus:
    """One ring of ids; reading it leaves it on disk.

    Args:
        parts: the ids, in order; each begins with a document.
        starts: for each part, where its documents' separators begin.
        name: what errors call it.
        separator: the ids before every document.
        text_bytes: UTF-8 bytes of its documents.
    """

    def __init__(
        self,
        parts: Sequence[Ids],
        starts: Sequence[NDArray[np.uint64]],
        name: str,
        separator: tuple[int, ...],
        text_bytes: int,
    ) -> None:
        self.name, self.separator, self.text_bytes = name, separator, text_bytes
        self._parts, self._starts = list(parts), list(starts)
        self._ends = np.cumsum([len(part) for part in parts])

    @classmethod
    def open(cls, folder: Path, split: str = "train", verify: bool = True) -> Corpus:
        """Map a split of a prepared folder.

        Args:
            verify: read all of it and compare hashes; without, only sizes are checked.
        Raises:
            FormatError: a file is missing or damaged; the message names it.
            InputError: the folder has no such split.
            UnsupportedError: a later version of the format.
        """
        manifest = Manifest.read(folder)
        shards = manifest.splits.get(split)
        if shards is None:
            have = ", ".join(manifest.splits)
            raise InputError(
                f"{folder}: has no split {split!r}, only {have}; `bitnet prepare --validation` makes one"
            )
        little = np.dtype(manifest.dtype).newbyteorder("<")
        parts: list[Ids] = [_map(folder / shard.file, little, shard.tokens) for shard in shards]
        starts = [_map(folder / shard.index, np.dtype("<u8"), shard.documents) for shard in shards]
        if verify:
            for shard, part, begins in zip(shards, parts, starts, strict=True):
                _verify(folder / shard.file, part, shard.sha256)
                _verify(folder / shard.index, begins, shard.index_sha256)
                _check_content(folder / shard.file, part, begins, manifest.vocab_size)
        text_bytes = sum(shard.text_bytes for shard in shards)
        return cls(parts, starts, f"{folder} ({split})", manifest.separator, text_bytes)

    @classmethod
    def from_ids(
        cls,
        ids: Ids,
        name: str = "text",
        starts: NDArray[np.uint64] | None = None,
        separator: tuple[int, ...] = (0,),
        text_bytes: int = 0,
    ) -> Corpus:
        """A corpus in memory; without `starts` it is one document."""
        return cls([ids], [np.zeros(1, np.uint64) if starts is None else starts], name, separator, text_bytes)

    def __len__(self) -> int:
        """Tokens."""
        return int(self._ends[-1])

    @property
    def documents(self) -> int:
        """Number of documents."""
        return sum(len(starts) for starts in self._starts)

    def document_starts(self) -> NDArray[np.int64]:
        """Where each document's separator begins in the ring, int64 (documents,)."""
        begins = [0, *self._ends[:-1].tolist()]
        return np.concatenate(
            [starts.astype(np.int64) + begin for starts, begin in zip(self._starts, begins, strict=True)]
        )

    def take(self, start: int, length: int) -> NDArray[np.int64]:
        """Ids from `start` on, int64 (length,); after the last follows the first."""
        out = np.empty(length, np.int64)
        start %= len(self)
        done = 0
        while done < length:
            number = int(np.searchsorted(self._ends, start, side="right"))
            part = self._parts[number]
            first = start - (int(self._ends[number]) - len(part))
            piece = part[first : first + length - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            start = (start + len(piece)) % len(self)
        return out


class _Fields:
    """Typed access to an object of the manifest; `where` names it in errors."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def text(self, key: str) -> str:
        return cast(str, self._get(key, lambda value: isinstance(value, str), "text"))

    def count(self, key: str, least: int = 1) -> int:
        good = f"a whole number of at least {least}"
        return cast(int, self._get(key, lambda value: type(value) is int and least <= value < 1 << 62, good))

    def _get(self, key: str, is_good: Callable[[Any], bool], expected: str) -> object:
        value = self._values.get(key)
        if not is_good(value):
            raise FormatError(f"{self._where}: {key} is {value!r}, expected {expected}")
        return value


def _shards(split: str, items: Any, path: Path) -> tuple[Shard, ...]:
    if not isinstance(items, list) or not items:
        raise FormatError(f"{path}: split {split!r} lists no shards")
    shards = []
    for number, item in enumerate(items):
        where = f"{path}: split {split!r}, shard {number}"
        if not isinstance(item, dict):
            raise FormatError(f"{where}: is {item!r}, expected an object")
        fields = _Fields(item, where)
        file = fields.text("file")
        if not file.endswith(".bin") or Path(file).name != file or "\\" in file or "\0" in file:
            raise FormatError(f"{where}: file is {file!r}, expected the name of a .bin file in the folder")
        shards.append(
            Shard(
                file,
                fields.count("tokens"),
                fields.count("documents"),
                fields.count("text_bytes", 0),
                fields.text("sha256"),
                fields.text("index_sha256"),
            )
        )
    return tuple(shards)


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    try:
        size = path.stat().st_size
        if size != count * dtype.itemsize:
            raise FormatError(
                f"{path}: has {size} bytes, the manifest promises {count * dtype.itemsize}; "
                "copy or prepare it anew"
            )
        return np.memmap(path, dtype, "r", shape=(count,))
    except FileNotFoundError:
        raise FormatError(f"{path}: not found, but the manifest lists it") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None


def _verify(path: Path, content: NDArray[Any], expected: str) -> None:
    found = hashlib.sha256(content.data).hexdigest()
    if found != expected:
        raise FormatError(
            f"{path}: is damaged: its sha256 is {found}, the manifest says {expected}; "
            "copy or prepare it anew"
        )


def _check_content(path: Path, ids: Ids, starts: NDArray[np.uint64], vocab_size: int) -> None:
    """What only a faulty writer gets wrong, since the hashes fit."""
    if int(ids.max()) >= vocab_size:
        raise FormatError(f"{path}: holds the id {ids.max()}, vocab_size is {vocab_size}; prepare it anew")
    if starts[0] != 0 or starts[-1] >= len(ids) or not (starts[1:] > starts[:-1]).all():
        raise FormatError(
            f"{path.with_suffix('.idx')}: the document starts do not rise from 0; prepare it anew"
        )
