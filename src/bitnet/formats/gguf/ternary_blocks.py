"""The ternary block types' bits, as the stored value code + 1: 0 is -1, 1 is 0, 2 is +1.

I2_S, x86's byte order: element j of a block of 128 stands in byte j % 32 at shift 6 - 2 (j // 32). The scale,
    one float32 for the tensor, begins the tail.
TQ2_0, 256 elements: two halves of 32 bytes, element m + 32 n of a half in its byte m at shift 2 n; then d.
TQ1_0, 256 elements in base 3, the first trit most significant: 32 bytes for elements m + 32 n (n = 0..4), 16
    for 160 + m + 16 n, 4 for 240 + m + 4 n (n = 0..3, the fifth trit is 0); then d. A byte holds
    ceil(v 256 / 243), so that trit n of it is ((byte 3^n mod 256) 3) >> 8.

d is float16 and stands for |x|; a block of zeros may have 0 there. BitNet's scale is one a tensor, so all
other blocks must agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.gguf.block_types import I2_S, TQ2_0, BlockType
from bitnet.quantize.weights import MIN_SCALE

_CHUNK = 1 << 10  # blocks handled at once: temporaries stay in the L2 cache
_TQ1_0_GROUPS = ((32, 5), (16, 5), (4, 4))  # bytes, trits in each
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def decode(kind: BlockType, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stored values, uint8 (n, elements), of blocks, uint8 (n, bytes). I2_S and TQ2_0 may yield the "
    "invalid 3."""
    count = len(blocks)
    values = np.empty((count, kind.elements), np.uint8)
    if kind is I2_S:
        for n in range(4):
            np.right_shift(blocks, np.uint8(6 - 2 * n), out=values.reshape(count, 4, 32)[:, n])
        values &= np.uint8(3)
    elif kind is TQ2_0:
        halves = blocks[:, :64].reshape(count, 2, 32)
        for n in range(4):
            np.right_shift(halves, np.uint8(2 * n), out=values.reshape(count, 2, 4, 32)[:, :, n])
        values &= np.uint8(3)
    else:
        byte = element = 0
        for width, trits in _TQ1_0_GROUPS:
            group = blocks[:, byte : byte + width]
            for n in range(trits):
                trit = (group * _POWERS[n]).astype(np.uint16)
                values[:, element : element + width] = (trit * np.uint16(3)) >> np.uint16(8)
                element += width
            byte += width
    return values


def encode(kind: BlockType, values: NDArray[np.uint8], scale: np.float16) -> NDArray[np.uint8]:
    """Blocks, uint8 (n, bytes), of stored values, uint8 in 0..2, (n, elements); I2_S needs no scale here."""
    count = len(values)
    blocks = np.zeros((count, kind.bytes), np.uint8)
    if kind is I2_S:
        for n in range(4):
            blocks |= values.reshape(count, 4, 32)[:, n] << np.uint8(6 - 2 * n)
        return blocks
    blocks[:, -2:] = np.array([scale], "<f2").view(np.uint8)
    if kind is TQ2_0:
        halves = blocks[:, :64].reshape(count, 2, 32)
        for n in range(4):
            halves |= values.reshape(count, 2, 4, 32)[:, :, n] << np.uint8(2 * n)
        blocks[:, :64] = halves.reshape(count, 64)
        return blocks
    byte = element = 0
    for width, trits in _TQ1_0_GROUPS:
        number = np.zeros((count, width), np.uint16)
        for n in range(trits):
            number += values[:, element : element + width] * np.uint16(_POWERS[4 - n])
            element += width
        blocks[:, byte : byte + width] = (number * np.uint16(256) + np.uint16(242)) // np.uint16(243)
        byte += width
    return blocks


def to_packed(kind: BlockType, raw: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """A tensor's bytes as packed codes, uint8 (rows / 4, columns), the layout of `bitnet.quantize.packing`.

    The quarters of the flattened tensor are the four bit fields of the flattened result, so both are walked
    linearly, whatever the width of a row.
    """
    quarter = rows * columns // 4
    packed = np.zeros(quarter, np.uint8)
    for i in range(4):
        for start, values in _values(kind, raw, i * quarter, (i + 1) * quarter):
            values <<= np.uint8(2 * i)
            packed[start : start + len(values)] |= values
    return packed.reshape(rows // 4, columns)


def from_packed(kind: BlockType, packed: NDArray[np.uint8], scale: np.float32) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor of this type, in pieces; the inverse of `to_packed`.

    The scale must fit: see `stored_scale`.
    """
    flat = packed.reshape(-1)
    step = _CHUNK * kind.elements
    half = np.float16(0) if kind is I2_S else np.float16(scale)
    for start in range(0, 4 * flat.size, step):
        values = _unpacked(flat, start, min(start + step, 4 * flat.size))
        yield encode(kind, values.reshape(-1, kind.elements), half).reshape(-1)
    if kind is I2_S:
        tail = np.zeros(kind.tail, np.uint8)
        tail[:4] = np.array([scale], "<f4").view(np.uint8)
        yield tail


def stored_scale(kind: BlockType, scale: np.float32, name: str) -> np.float32:
    """What remains of a scale in this type: itself in I2_S, rounded to float16 in the others.

    Raises:
        UnsupportedError: float16 cannot hold it.
    """
    if kind is I2_S:
        return scale
    with np.errstate(over="ignore"):
        half = np.float16(scale)
    if not 0 < half < np.inf:
        raise UnsupportedError(
            f"{name}: its scale {scale} does not fit the float16 of {kind.name}; write I2_S, which has "
            "float32"
        )
    return np.float32(half)


def read_scale(kind: BlockType, raw: NDArray[np.uint8], name: str) -> np.float32:
    """The tensor's scale; a tensor of zeros only, which has none in TQ1_0 and TQ2_0, gets a small one.

    Raises:
        FormatError: it is not a positive number, or a block without a scale holds more than zeros.
        UnsupportedError: the blocks have different scales.
    """
    if kind is I2_S:
        scale = raw[-kind.tail :][:4].view("<f4")[0]
        if not np.finfo(np.float32).tiny <= scale < np.inf:
            raise FormatError(
                f"{name}: its scale is {scale}; expected a positive number behind the codes. The file is "
                "damaged, or this is another layout of I2_S than x86's"
            )
        return np.float32(scale)
    blocks = raw.reshape(-1, kind.bytes)
    scales = np.ascontiguousarray(blocks[:, -2:]).view("<f2")[:, 0]
    some = scales[scales != 0]
    scale = some[0] if some.size else np.float16(0)
    if some.size and not 0 < scale < np.inf:
        raise FormatError(
            f"{name}: a block's scale is {scale}; expected a positive number. The file is damaged"
        )
    different = np.flatnonzero((scales != scale) & (scales != 0))
    if different.size:
        raise UnsupportedError(
            f"{name}: its blocks have different scales ({scale}, {scales[different[0]]}); BitNet has one a "
            "matrix. "
            "These weights were rounded to ternary by a general quantiser; take the model's safetensors"
        )
    for start in range(0, len(blocks), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        empty = blocks[chunk][scales[chunk] == 0]
        if empty.size and (decode(kind, empty) != 1).any():
            raise FormatError(f"{name}: a block has the scale 0, but codes beside 0. The file is damaged")
    return np.float32(scale) if some.size else np.float32(MIN_SCALE)


def _values(
    kind: BlockType, raw: NDArray[np.uint8], first: int, last: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Stored values of the flattened elements first..last: (place behind `first`, values)."""
    blocks = raw[: raw.size - kind.tail].reshape(-1, kind.bytes)
    for block in range(first // kind.elements, -(-last // kind.elements), _CHUNK):
        values = decode(kind, blocks[block : block + _CHUNK]).reshape(-1)
        offset = block * kind.elements
        start = max(first, offset)
        yield start - first, values[start - offset : last - offset]


def _unpacked(flat: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
    """Stored values of elements first..last of the flattened matrix whose packed bytes are `flat`."""
    values = np.empty(last - first, np.uint8)
    for i in range(first // flat.size, -(-last // flat.size)):
        start, end = max(first, i * flat.size), min(last, (i + 1) * flat.size)
        np.right_shift(
            flat[start - i * flat.size : end - i * flat.size],
            np.uint8(2 * i),
            out=values[start - first : end - first],
        )
    values &= np.uint8(3)
    return values
