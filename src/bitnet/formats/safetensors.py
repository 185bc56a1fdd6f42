"""safetensors files, memory-mapped and streamed; sharded ones through their index.

    8 bytes       header length N, little-endian
    N bytes       JSON: name -> {dtype, shape, data_offsets: [start, end)}, padded with spaces to 8 bytes
    then          the data, without holes or overlaps

The safetensors library judges whether a file keeps these rules; this module maps what it accepted. NumPy has
no bfloat16, so the library's own NumPy loader cannot read these files.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bitnet.errors import FormatError, ResourceError
from bitnet.formats.tensor import NUMPY_DTYPES, Tensor
from bitnet.json_file import parse_json_object, read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# A thousand layers have 18,000 tensors of about 120 bytes in a header or an index. Parsed, such a text takes
# up to 20 times its size in memory.
_MOST_HEADER_BYTES = 1 << 22


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map every tensor of one file, read-only; nothing is copied into memory.

    Raises:
        FormatError: the file is missing, damaged, names a tensor twice, or holds a dtype NumPy cannot map.
    """
    if not path.is_file():  # a pipe or a device would make the reader wait
        raise FormatError(f"{path}: not found, or not a file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if _MOST_HEADER_BYTES < length < path.stat().st_size:  # else the library says what is wrong
            raise FormatError(
                f"{path}: has a header of {length:,} bytes, more than the {_MOST_HEADER_BYTES:,} that are "
                "read; split the model into several files"
            )
        with safe_open(path, framework="numpy"):
            pass
        raw = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except FormatError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(
            f"{path}: not a valid safetensors file ({error}); download or write it again"
        ) from None
    start = 8 + int(raw[:8].view("<u8")[0])
    # parsed once more, because the library keeps the last of two entries of one name
    header = parse_json_object(raw[8:start].tobytes(), f"{path} (header)")
    header.pop("__metadata__", None)
    return {name: _map_tensor(raw[start:], entry, f"{path}: {name}") for name, entry in header.items()}


def read_checkpoint_files(directory: Path) -> dict[str, Tensor]:
    """Map every tensor of a checkpoint folder: `model.safetensors`, or the shards its index lists.

    Raises:
        FormatError: neither is there, or the index and the shards contradict each other.
    """
    index = directory / INDEX_FILE
    if (directory / SINGLE_FILE).exists():
        return read_safetensors(directory / SINGLE_FILE)
    if not index.exists():
        raise FormatError(f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    shard_of = _read_index(index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        in_shard = read_safetensors(directory / shard)
        for name in in_shard:
            if shard_of.get(name) != shard:
                raise FormatError(
                    f"{directory / shard}: holds {name}, which {INDEX_FILE} does not place there"
                )
        tensors |= in_shard
    for name, shard in shard_of.items():
        if name not in tensors:
            raise FormatError(f"{index}: places {name} in {shard}, which does not hold it")
    return tensors


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    blocks: Iterable[NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file, block after block: no more than one needs to be in memory.

    Args:
        path: a file that may be overwritten.
        shapes: name -> (safetensors dtype, shape), in the order of the data; see `file_order`.
        blocks: the tensors' data in that order (BF16 as uint16), each in one block or split along its first
            axis.
        metadata: strings for the header's `__metadata__`.
    Raises:
        ResourceError: the disk has no room; the message says how much is needed.
        ValueError: the blocks are not as many bytes as `shapes` promises.
    """
    header, size = encode_header(shapes, metadata)
    require_space(path.parent, size, path)
    try:
        with path.open("wb") as file:
            file.write(header)
            for block in blocks:
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            written = file.tell()
    except OSError as error:
        raise disk_error(error, path, size) from None
    if written != size:
        raise ValueError(f"{path}: {written} bytes were given, {size} promised")


def encode_header(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, int]:
    """The length word and header for these tensors, and the size of the whole file in bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        end = offset + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + offset


def file_order(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The order the safetensors library writes: wide dtypes first, which aligns each tensor; then by name."""

    def key(item: tuple[str, tuple[str, tuple[int, ...]]]) -> tuple[int, str]:
        name, (dtype, _) = item
        return -NUMPY_DTYPES[dtype].itemsize, name

    return dict(sorted(shapes.items(), key=key))


def require_space(directory: Path, size: int, path: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ResourceError: fewer than `size` bytes are free.
    """
    free = shutil.disk_usage(directory).free
    if size > free:
        raise ResourceError(
            f"{path}: needs {size:,} bytes of disk space, {free:,} are free; make room or choose another "
            "folder"
        )


def disk_error(error: OSError, path: Path, size: int | None = None) -> ResourceError:
    """What a failed write of `size` bytes means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = "" if size is None else f"; {size:,} bytes are needed"
        return ResourceError(f"{path}: the disk is full{needed}; make room or choose another folder")
    return ResourceError(f"{path}: cannot be written ({error.strerror or error})")


def _map_tensor(data: NDArray[np.uint8], entry: object, where: str) -> Tensor:
    if not isinstance(entry, dict):  # the library also takes the bare list [dtype, shape, data_offsets]
        raise FormatError(f"{where} is a {type(entry).__name__} in the header; expected an object")
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in NUMPY_DTYPES:
        raise FormatError(f"{where} is {dtype}; readable are {', '.join(NUMPY_DTYPES)}")
    start, end = entry["data_offsets"]
    try:
        array: NDArray[Any] = data[start:end].view(NUMPY_DTYPES[dtype]).reshape(shape)
    except (
        ValueError,
        OverflowError,
    ) as error:  # more axes or larger ones than NumPy has: an empty tensor can
        raise FormatError(f"{where} has an impossible shape ({error})") from None
    # a file written without padding may place floats at odd addresses, which the engines cannot read
    return Tensor(dtype, shape, array if array.flags.aligned else array.copy())


def _read_index(path: Path) -> dict[str, str]:
    shard_of = read_json_object(path, _MOST_HEADER_BYTES).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise FormatError(f"{path}: weight_map is missing; expected an object that maps tensors to files")
    for name, shard in shard_of.items():
        # a plain file name of this folder: an index must not reach for files elsewhere
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or "\\" in shard
            or not shard.endswith(".safetensors")
        ):
            raise FormatError(
                f"{path}: weight_map places {name} in {shard!r}; expected a .safetensors file beside it"
            )
    return shard_of
