"""One-bit values: their layout, and products of them by counting bits.

A row of signs is one bit a column, 1 for +1 and 0 for -1: column k stands in bit k % 8 of byte k // 8, and
what the last byte has left is 0. Activations of b = 2 to 8 bits are b such rows, plane j holding bit j of the
two's complement, with the weights c = 1, 2, ..., -2^(b-1). With popcount the number of ones,

    binary w, signs x     w . x = K - 2 popcount(w xor x)                       (XNOR-popcount)
    ternary w = P - N     w . x = sum over planes of c (popcount(P & x_j) - popcount(N & x_j))
    the same, signs x     w . x = sum of w over x = +1, less that over x = -1

all exact. Sign(x <= 0) is -1, as in arXiv 2310.11453, eq. 2. This is the definition the kernels are compared
with, plain and slow; `bitnet.binary` has the fast ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.int32)


def pack_signs(x: NDArray[np.floating] | NDArray[np.signedinteger]) -> NDArray[np.uint8]:
    """The signs of real values, one bit each.

    Args:
        x: real, (..., K).
    Returns:
        uint8, (..., ceil(K / 8)).
    Raises:
        ValueError: x has no axis or holds NaN, which has no sign.
    """
    if x.ndim == 0:
        raise ValueError("x is a single number; expected (..., K)")
    if np.isnan(x).any():
        raise ValueError("x holds NaN")
    packed: NDArray[np.uint8] = np.packbits(x > 0, axis=-1, bitorder="little")
    return packed


def unpack_signs(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """The signs in packed bytes: int8 -1 and +1, (..., columns).

    Raises:
        ValueError: `packed` is not uint8, or does not have ceil(columns / 8) bytes a row.
    """
    bits = _unpack_bits(packed, columns, "packed").astype(np.int8)
    return 2 * bits - np.int8(1)


def pack_planes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """The bit planes of two's complement codes.

    Args:
        codes: int8 in -2^(bits-1) .. 2^(bits-1) - 1, (..., K).
        bits: 2 to 8.
    Returns:
        uint8, (..., bits, ceil(K / 8)); plane j holds bit j.
    Raises:
        ValueError: another type, a code out of range, or an impossible number of bits.
    """
    _check_bits(bits)
    if codes.ndim == 0 or codes.dtype != np.int8:
        raise ValueError(f"codes are {codes.dtype} of shape {codes.shape}; expected int8 (..., K)")
    limit = 1 << (bits - 1)
    if codes.size and (codes.min() < -limit or codes.max() >= limit):
        raise ValueError(f"codes hold values outside {-limit}..{limit - 1}, which {bits} bits cannot hold")
    shifts = np.arange(bits, dtype=np.uint8)[:, None]
    planes = (codes.view(np.uint8)[..., None, :] >> shifts) & 1
    packed: NDArray[np.uint8] = np.packbits(planes, axis=-1, bitorder="little")
    return packed


def unpack_planes(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """The codes in bit planes: int8, (..., columns).

    Raises:
        ValueError: `packed` is not uint8 (..., 2 to 8 planes, ceil(columns / 8)).
    """
    if packed.ndim < 2:
        raise ValueError(f"packed has shape {packed.shape}; expected (..., planes, bytes)")
    _check_bits(packed.shape[-2])
    planes = _unpack_bits(packed, columns, "packed").astype(np.int32)
    weights = plane_weights(packed.shape[-2])[:, None]
    codes: NDArray[np.int8] = (planes * weights).sum(axis=-2).astype(np.int8)
    return codes


def plane_weights(bits: int) -> NDArray[np.int32]:
    """What each plane's bit counts: 1, 2, 4, ..., -2^(bits-1)."""
    _check_bits(bits)
    weights = np.left_shift(np.int32(1), np.arange(bits, dtype=np.int32))
    weights[-1] = -weights[-1]
    return weights


def binary_matmul(x: NDArray[np.uint8], weight: NDArray[np.uint8], columns: int) -> NDArray[np.int32]:
    """Signs times signs: y[t, n] = columns - 2 popcount(weight[n] xor x[t]).

    Args:
        x: packed signs, (tokens, ceil(columns / 8)).
        weight: packed signs, (rows, ceil(columns / 8)).
    Returns:
        int32, (tokens, rows).
    Raises:
        ValueError: a type or shape that does not fit.
    """
    tokens = _check_rows(x, columns, "x")
    rows = _check_rows(weight, columns, "weight")
    return np.int32(columns) - 2 * _popcount(rows[None] ^ tokens[:, None])


def binary_bit_serial_matmul(
    planes: NDArray[np.uint8], weight: NDArray[np.uint8], columns: int
) -> NDArray[np.int32]:
    """Signs times activations of 2 to 8 bits: the sum over planes of c (2 popcount(w & x) - popcount(x)).

    Args:
        planes: packed planes, (tokens, bits, ceil(columns / 8)).
        weight: packed signs, (rows, ceil(columns / 8)).
    Returns:
        int32, (tokens, rows).
    Raises:
        ValueError: a type or shape that does not fit.
    """
    x = _check_planes(planes, columns)
    rows = _check_rows(weight, columns, "weight")
    sums = [2 * _popcount(rows[None] & plane[:, None]) - _popcount(plane)[:, None] for plane in x]
    return np.tensordot(plane_weights(len(x)), np.stack(sums), axes=1).astype(np.int32)


def ternary_bit_serial_matmul(
    x: NDArray[np.uint8], plus: NDArray[np.uint8], minus: NDArray[np.uint8], columns: int
) -> NDArray[np.int32]:
    """Ternary weights as two binary matrices, plus - minus, times signs or bit planes.

    Args:
        x: packed signs, (tokens, ceil(columns / 8)), or packed planes, (tokens, bits, ceil(columns / 8)).
        plus: ones where the weight is +1, (rows, ceil(columns / 8)).
        minus: ones where the weight is -1, same shape.
    Returns:
        int32, (tokens, rows).
    Raises:
        ValueError: a type or shape that does not fit, or a weight that is both.
    """
    positive = _check_rows(plus, columns, "plus")
    negative = _check_rows(minus, columns, "minus")
    if positive.shape != negative.shape:
        raise ValueError(f"plus has shape {plus.shape} and minus {minus.shape}")
    if (positive & negative).any():
        raise ValueError("a weight is set in plus and in minus")

    def sums(bits: NDArray[np.uint8]) -> NDArray[np.int32]:
        return _popcount(positive[None] & bits[:, None]) - _popcount(negative[None] & bits[:, None])

    if x.ndim == 2:
        ones = _check_rows(x, columns, "x")
        return 2 * sums(ones) - (_popcount(positive) - _popcount(negative))
    planes = _check_planes(x, columns)
    totals = np.stack([sums(plane) for plane in planes])
    return np.tensordot(plane_weights(len(planes)), totals, axes=1).astype(np.int32)


def _popcount(bits: NDArray[np.uint8]) -> NDArray[np.int32]:
    counts: NDArray[np.int32] = _ONES[bits].sum(axis=-1, dtype=np.int32)
    return counts


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits; expected 2 to {MAX_BITS} (one bit a value is pack_signs)")


def _unpack_bits(packed: NDArray[np.uint8], columns: int, name: str) -> NDArray[np.uint8]:
    row_bytes = -(-columns // 8)
    if packed.dtype != np.uint8 or packed.ndim == 0 or columns < 1 or packed.shape[-1] != row_bytes:
        raise ValueError(
            f"{name} is {packed.dtype} of shape {packed.shape}; expected uint8 (..., {row_bytes}) "
            f"for {columns} columns"
        )
    bits: NDArray[np.uint8] = np.unpackbits(packed, axis=-1, count=columns, bitorder="little")
    return bits


def _check_rows(packed: NDArray[np.uint8], columns: int, name: str) -> NDArray[np.uint8]:
    """The same rows with what the last byte has left cleared."""
    if packed.ndim != 2:
        raise ValueError(f"{name} has shape {packed.shape}; expected (rows, bytes)")
    return np.packbits(_unpack_bits(packed, columns, name), axis=-1, bitorder="little")


def _check_planes(packed: NDArray[np.uint8], columns: int) -> list[NDArray[np.uint8]]:
    if packed.ndim != 3:
        raise ValueError(f"planes have shape {packed.shape}; expected (tokens, bits, bytes)")
    _check_bits(packed.shape[1])
    return [_check_rows(packed[:, j], columns, "planes") for j in range(packed.shape[1])]
