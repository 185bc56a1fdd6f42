"""Writing a prepared folder: memory bounded by one shard's document starts, and all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import InputError, ResourceError
from bitnet.train.shards import MANIFEST, TOKENIZER, Manifest, Shard, dtype_for

DEFAULT_SHARD_TOKENS = 1 << 27  # 256 MB of uint16


class ShardWriter:
    """A context manager that leaves the finished folder, or after an exception none.

    Args:
        folder: must not exist, or be empty.
        tokenizer_json: what is copied beside the shards.
        vocab_size: ids must be below it.
        separator: the ids that the documents begin with.
        shard_tokens: a shard is closed by the first document that reaches it.
    Raises:
        InputError: the folder holds something already.
        ResourceError: it cannot be written: no disk space, no permission.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer_json: bytes,
        vocab_size: int,
        separator: tuple[int, ...],
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
    ) -> None:
        if shard_tokens < 1:
            raise InputError(f"shard_tokens is {shard_tokens}; it must be at least 1")
        if not folder.name:
            raise InputError(f"{folder}: has no name of its own; choose another folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: exists already; remove it or choose another folder")
        self.folder, self._temporary = folder, folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        self._vocab_size, self._separator, self._shard_tokens = vocab_size, separator, shard_tokens
        self._dtype = np.dtype(dtype_for(vocab_size)).newbyteorder("<")
        self._tokenizer_json = tokenizer_json
        self._open: dict[str, _OpenShard] = {}
        self._finished: dict[str, list[Shard]] = {}

    def __enter__(self) -> ShardWriter:
        try:
            self._temporary.mkdir(parents=True)
            (self._temporary / TOKENIZER).write_bytes(self._tokenizer_json)
        except OSError as error:
            self._remove()
            raise self._refusal(error) from None
        return self

    def add(self, split: str, ids: NDArray[np.int64], text_bytes: int) -> None:
        """Append a document.

        Args:
            ids: int64, the separator first.
            text_bytes: UTF-8 bytes of its text.
        Raises:
            InputError: an id is beyond the vocabulary.
            ResourceError: the disk is full.
        """
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= self._vocab_size:
            wrong = "no ids" if len(ids) == 0 else f"the id {ids.max() if ids.min() >= 0 else ids.min()}"
            raise InputError(f"{self.folder}: a document has {wrong}; vocab_size is {self._vocab_size}")
        try:
            shard = self._open.get(split)
            if shard is None:
                number = len(self._finished.setdefault(split, []))
                shard = self._open[split] = _OpenShard(self._temporary / f"{split}-{number:05d}.bin")
            shard.add(ids.astype(self._dtype), text_bytes)
            if shard.tokens >= self._shard_tokens:
                self._finished[split].append(self._open.pop(split).finish())
        except OSError as error:
            raise self._refusal(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._remove()
            return
        try:
            for split in list(self._open):
                self._finished[split].append(self._open.pop(split).finish())
            self._write_manifest()
        except OSError as failure:
            self._remove()
            raise self._refusal(failure) from None
        try:
            self._temporary.replace(self.folder)
        except OSError as failure:
            raise ResourceError(
                f"{self.folder}: cannot be created ({failure.strerror}); "
                f"the finished data lie in {self._temporary}"
            ) from None

    def _write_manifest(self) -> None:
        manifest = Manifest(
            hashlib.sha256(self._tokenizer_json).hexdigest(),
            self._vocab_size,
            dtype_for(self._vocab_size),
            self._separator,
            {split: tuple(shards) for split, shards in self._finished.items()},
        )
        with (self._temporary / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest.to_dict(), file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())

    def _remove(self) -> None:
        for shard in self._open.values():
            shard.abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _refusal(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self.folder}: cannot be written ({error.strerror or error}); nothing is left of it, "
            "make room or choose another disk"
        )


class _OpenShard:
    """A shard that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._hash = hashlib.sha256()
        self._starts = array("Q")
        self.tokens = self._text_bytes = 0

    def add(self, ids: NDArray[np.uint16] | NDArray[np.uint32], text_bytes: int) -> None:
        content = ids.tobytes()
        self._file.write(content)
        self._hash.update(content)
        self._starts.append(self.tokens)
        self.tokens += len(ids)
        self._text_bytes += text_bytes

    def finish(self) -> Shard:
        """Write all of it to the disk."""
        self._close()
        index = np.array(self._starts, "<u8").tobytes()
        with self._path.with_suffix(".idx").open("wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        return Shard(
            self._path.name,
            self.tokens,
            len(self._starts),
            self._text_bytes,
            self._hash.hexdigest(),
            hashlib.sha256(index).hexdigest(),
        )

    def abandon(self) -> None:
        """Close the file, which writes what is buffered and so can fail on a full disk."""
        with suppress(OSError):
            self._file.close()

    def _close(self) -> None:
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
