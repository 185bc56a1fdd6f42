"""Writing GGUF's container, version 3; container.py says what it looks like."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import InputError
from bitnet.formats.gguf.block_types import BlockType
from bitnet.formats.gguf.container import MAGIC
from bitnet.formats.gguf.metadata import ARRAY, BOOL, SCALARS, STRING
from bitnet.formats.safetensors import disk_error, require_space

_VERSION = 3
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32 = 4, 5, 6


@dataclass(frozen=True)
class Int32Array:
    """A value that is written as an array of int32."""

    values: Sequence[int]


Writable = bool | int | float | str | Sequence[str] | Int32Array


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its type, and its shape row-major."""

    type: BlockType
    shape: tuple[int, ...]

    def size(self, name: str) -> int:
        return self.type.size(self.shape, name)


def write_container(
    path: Path,
    metadata: Mapping[str, Writable],
    tensors: Mapping[str, Planned],
    blocks: Iterable[tuple[str, NDArray[np.uint8]]],
) -> None:
    """Write one file, piece after piece; it appears complete or not at all.

    Args:
        path: must not exist.
        metadata: int becomes uint32, float float32.
        tensors: name -> type and shape, in the order of the data.
        blocks: (name, bytes) in that order, a tensor in one piece or several.
    Raises:
        InputError: the file exists.
        ResourceError: the disk has no room, or the folder cannot be written.
        ValueError: the pieces are not what `tensors` promises.
    """
    if path.exists():
        raise InputError(f"{path}: exists already; choose a new file or remove it first")
    header, size = encode_header(metadata, tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path.parent, size, path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise disk_error(error, path, size) from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header)
            _write_data(file, tensors, blocks)
            if file.tell() != size:
                raise ValueError(f"{path}: {file.tell()} bytes were given, {size} promised")
        temporary.chmod(0o644)  # mkstemp's 0o600 would hide the model from others
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path, size) from None
    finally:
        temporary.unlink(missing_ok=True)


def encode_header(metadata: Mapping[str, Writable], tensors: Mapping[str, Planned]) -> tuple[bytes, int]:
    """Everything before the data, padded, and the size of the whole file."""
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for name, item in tensors.items():
        axes = item.shape[::-1]
        parts += [_string(name), struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, item.type.id, offset)]
        offset += _padded(item.size(name))
    header = b"".join(parts)
    header += b"\0" * (_padded(len(header)) - len(header))
    return header, len(header) + offset


def _write_data(
    file: Any, tensors: Mapping[str, Planned], blocks: Iterable[tuple[str, NDArray[np.uint8]]]
) -> None:
    pending = iter(tensors.items())
    current, left = "", 0
    for name, data in blocks:
        if name != current:
            if left:
                raise ValueError(f"{current}: {left} bytes are missing")
            current, item = next(pending)
            if name != current:
                raise ValueError(f"{name} came where {current} was promised")
            left = item.size(name)
            padding = _padded(left) - left
        file.write(np.ascontiguousarray(data).data)
        left -= data.nbytes
        if left == 0:
            file.write(b"\0" * padding)


def _padded(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _string(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _value(value: Writable) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, Int32Array):
        numbers = np.asarray(value.values, SCALARS[_INT32])
        return struct.pack("<IIQ", ARRAY, _INT32, len(numbers)) + numbers.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
