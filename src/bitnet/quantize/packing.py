"""Bit layouts of codes on disk.

Ternary: 2-bit rows, the layout of published packed checkpoints. With R = out / 4, the code of row r + i*R
stands in bits 2i..2i+1 of byte [r, column]. The stored value is code + 1: 0 is -1, 1 is 0, 2 is +1; 3 is
invalid. Binary: 1-bit rows, the same with R = out / 8 and bit i; 0 is -1, 1 is +1, and nothing is invalid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitnet.quant_config import WeightKind

_BLOCK = 1 << 18  # bytes looked at in one go: temporaries stay in the L2 cache


def pack_2bit(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack ternary codes, four rows a byte.

    Args:
        codes: int8 in -1..1, (out, in), out a multiple of 4.
    Returns:
        uint8, (out / 4, in).
    Raises:
        ValueError: another shape, another integer type, or a code outside -1..1.
    """
    if codes.ndim != 2 or codes.shape[0] % 4:
        raise ValueError(f"codes have shape {codes.shape}; expected (out, in) with out a multiple of 4")
    if codes.dtype != np.int8:
        raise ValueError(f"codes are {codes.dtype}; expected int8")
    if codes.size and (codes.min() < -1 or codes.max() > 1):
        raise ValueError("codes hold values outside -1..1")
    stored = (codes + np.int8(1)).view(np.uint8).reshape(4, codes.shape[0] // 4, codes.shape[1])
    packed: NDArray[np.uint8] = stored[0].copy()
    for i in (1, 2, 3):
        packed |= stored[i] << np.uint8(2 * i)
    return packed


def unpack_2bit(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The codes in packed bytes: int8 in -1..1, (4 * rows, in).

    Raises:
        ValueError: `packed` is not a uint8 matrix, or holds the invalid value 3.
    """
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise ValueError(f"packed is {packed.dtype} of shape {packed.shape}; expected a uint8 matrix")
    invalid = find_invalid(packed)
    if invalid is not None:
        raise ValueError(f"packed holds the invalid code 3 in byte {list(invalid)}")
    rows, columns = packed.shape
    stored = np.empty((4, rows, columns), dtype=np.uint8)
    for i in range(4):
        np.right_shift(packed, np.uint8(2 * i), out=stored[i])
    stored &= np.uint8(3)
    codes: NDArray[np.int8] = stored.reshape(4 * rows, columns).view(np.int8)
    codes -= np.int8(1)
    return codes


def pack_1bit(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack binary codes, eight rows a byte.

    Args:
        codes: int8, -1 or +1, (out, in), out a multiple of 8.
    Returns:
        uint8, (out / 8, in).
    Raises:
        ValueError: another shape, another integer type, or another code.
    """
    if codes.ndim != 2 or codes.shape[0] % 8:
        raise ValueError(f"codes have shape {codes.shape}; expected (out, in) with out a multiple of 8")
    if codes.dtype != np.int8:
        raise ValueError(f"codes are {codes.dtype}; expected int8")
    if (np.abs(codes) != 1).any():
        raise ValueError("codes hold values other than -1 and +1")
    rows = (codes > 0).reshape(8, codes.shape[0] // 8, codes.shape[1])
    packed: NDArray[np.uint8] = np.packbits(rows, axis=0, bitorder="little")[0]
    return packed


def unpack_1bit(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The codes in packed bytes: int8, -1 or +1, (8 * rows, in).

    Raises:
        ValueError: `packed` is not a uint8 matrix.
    """
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise ValueError(f"packed is {packed.dtype} of shape {packed.shape}; expected a uint8 matrix")
    bits = np.unpackbits(packed[None], axis=0, bitorder="little")
    codes: NDArray[np.int8] = bits.reshape(8 * packed.shape[0], packed.shape[1]).view(np.int8)
    codes *= np.int8(2)
    codes -= np.int8(1)
    return codes


def pack(codes: NDArray[np.int8], kind: WeightKind) -> NDArray[np.uint8]:
    """`pack_1bit` or `pack_2bit`."""
    return pack_1bit(codes) if kind == "binary" else pack_2bit(codes)


def unpack(packed: NDArray[np.uint8], kind: WeightKind) -> NDArray[np.int8]:
    """`unpack_1bit` or `unpack_2bit`."""
    return unpack_1bit(packed) if kind == "binary" else unpack_2bit(packed)


def find_invalid(packed: NDArray[np.uint8]) -> tuple[int, int] | None:
    """The first (row, column) byte that holds the invalid code 3, or None. Reads each byte once."""
    for start, block in _blocks(packed):
        # both bits of a pair set: only 3 survives the conjunction with its own shift
        pairs = np.right_shift(block, np.uint8(1))
        pairs &= block
        pairs &= np.uint8(0x55)
        if pairs.any():
            row, column = divmod(start + int(np.flatnonzero(pairs)[0]), packed.shape[1])
            return row, column
    return None


def count_codes(packed: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """How often each code occurs: (minus one, zero, plus one, invalid)."""
    histogram = np.zeros(256, dtype=np.int64)
    for _, block in _blocks(packed):
        histogram += np.bincount(block, minlength=256)
    byte = np.arange(256)
    in_byte = np.stack([sum((byte >> shift) & 3 == value for shift in (0, 2, 4, 6)) for value in range(4)])
    minus, zero, plus, invalid = (int(count) for count in in_byte @ histogram)
    return minus, zero, plus, invalid


def _blocks(packed: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    flat = packed.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield start, flat[start : start + _BLOCK]
