"""Block types for embeddings and heads: Q8_0, Q6_K and Q4_K to float32, and float32 to the first two.

Q8_0, 32 elements: d float16, 32 int8 q. x = d q.
Q6_K, 256 elements in 16 groups: 128 bytes of low halves, 64 of upper quarters, 16 int8 scales s, d float16.
    x = d s (q - 32), q of 6 bits.
Q4_K, 256 elements in 8 groups: d, dmin float16, 12 bytes of 6-bit s and m, 128 of q. x = d s q - dmin m.

Where elements of Q6_K stand, for each half of 128: element e = 32 k + j (k = 0..3, j = 0..31) has its low
bits in byte j + 32 (k % 2) of the half's 64, the lower nibble for k < 2, and its upper bits in byte j of 32
at shift 2 k.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bitnet.formats.gguf.block_types import Q4_K, Q6_K, Q8_0, BlockType

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_GROUP = 16  # elements of Q6_K that share a scale
# Scales tried around the one that just reaches 32 with the largest element; more make no measurable
# difference.
_STEPS = np.arange(-6, 7, dtype=np.float32) / np.float32(4)


def decode(kind: BlockType, blocks: Bytes) -> Floats:
    """float32 (n, elements) of blocks, uint8 (n, bytes)."""
    return _DECODERS[kind.name](blocks)


def encode(kind: BlockType, values: Floats) -> Bytes:
    """Blocks, uint8 (n, bytes), nearest to finite float32 values, (n, elements)."""
    return _ENCODERS[kind.name](values)


def scales(kind: BlockType, blocks: Bytes) -> Floats:
    """The float16 factors of every block, float32 (n, 1 or 2): a block is finite when these are."""
    places = {"Q8_0": slice(0, 2), "Q4_K": slice(0, 4), "Q6_K": slice(208, 210)}
    return _halves(blocks[:, places[kind.name]])


def _halves(columns: Bytes) -> Floats:
    return np.ascontiguousarray(columns).view("<f2").astype(np.float32)


def _decode_q8_0(blocks: Bytes) -> Floats:
    return _halves(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _encode_q8_0(values: Floats) -> Bytes:
    d = (np.abs(values).max(axis=1, keepdims=True) / np.float32(127)).astype("<f2")
    # rounded with the stored scale, not with the exact one: the result is nearer
    q = np.clip(np.rint(values * _reciprocal(d.astype(np.float32))), -127, 127).astype(np.int8)
    return np.concatenate([d.view(np.uint8), q.view(np.uint8)], axis=1)


def _decode_q6_k(blocks: Bytes) -> Floats:
    count = len(blocks)
    low = blocks[:, :128].reshape(count, 2, 1, 2, 32)
    high = blocks[:, 128:192].reshape(count, 2, 1, 32)
    q = (low >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1, 1)) & np.uint8(15)
    q = q.reshape(count, 2, 4, 32)
    q |= ((high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & np.uint8(3)) << np.uint8(4)
    factor = _halves(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    centred = q.reshape(count, _GROUP, -1).view(np.int8) - np.int8(32)
    values: Floats = (factor[:, :, None] * centred.astype(np.float32)).reshape(count, -1)
    return values


def _encode_q6_k(values: Floats) -> Bytes:
    count = len(values)
    groups = values.reshape(-1, _GROUP)
    wanted = _best_scales(groups).reshape(count, _GROUP)
    extreme = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=1)[:, None], axis=1)
    # the largest scale becomes -128, which int8 has and +128 not
    d = (extreme / np.float32(-128)).astype("<f2")
    wide = d.astype(np.float32)
    s = np.clip(np.rint(wanted * _reciprocal(wide)), -128, 127).astype(np.int8)
    factor = (wide * s.astype(np.float32)).reshape(-1, 1)
    q = np.clip(np.rint(groups * _reciprocal(factor)), -32, 31).astype(np.int8) + np.int8(32)
    fields = q.view(np.uint8).reshape(count, 2, 4, 32)
    low = (fields[:, :, :2] & np.uint8(15)) | ((fields[:, :, 2:] & np.uint8(15)) << np.uint8(4))
    high = np.zeros((count, 2, 32), np.uint8)
    for k in range(4):
        high |= (fields[:, :, k] >> np.uint8(4)) << np.uint8(2 * k)
    parts = [low.reshape(count, 128), high.reshape(count, 64), s.view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, axis=1)


def _best_scales(groups: Floats) -> Floats:
    """For each row the scale t of the least squared error of t clip(round(x / t), -32, 31), of some "
    "candidates."""
    places = np.abs(groups).argmax(axis=1)[:, None]
    extreme = np.take_along_axis(groups, places, axis=1)
    best = np.zeros(len(groups), np.float32)
    least = np.full(len(groups), np.inf, np.float32)
    for step in _STEPS:
        t = extreme / (np.float32(-32) - step)
        q = np.clip(np.rint(groups * _reciprocal(t)), -32, 31)
        squares = (q * q).sum(axis=1)
        # for these whole numbers the best factor is <x, q> / <q, q>
        fitted = (groups * q).sum(axis=1) * _reciprocal(squares)
        error = ((groups - fitted[:, None] * q) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = fitted[better], error[better]
    return best


def _reciprocal(values: Floats) -> Floats:
    """1 / x, and 0 for 0 and for what is too small to have a finite one."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / values
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _decode_q4_k(blocks: Bytes) -> Floats:
    count = len(blocks)
    d, dmin = blocks[:, :2], blocks[:, 2:4]
    # bytes 0..3: s of groups 0..3; 4..7: m of groups 0..3; 8..11: the nibbles of groups 4..7. The two upper
    # bits of the latter stand in the upper bits of the former.
    first, second, third = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    s = np.concatenate([first & np.uint8(63), (third & np.uint8(15)) | ((first >> 2) & np.uint8(48))], axis=1)
    m = np.concatenate(
        [second & np.uint8(63), (third >> np.uint8(4)) | ((second >> 2) & np.uint8(48))], axis=1
    )
    # four runs of 64 elements: 32 in the lower nibbles of 32 bytes, the next 32 in their upper ones
    q = blocks[:, 16:].reshape(count, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    q = (q & np.uint8(15)).reshape(count, 8, 32)
    factor = _halves(d) * s.astype(np.float32)
    offset = _halves(dmin) * m.astype(np.float32)
    values: Floats = factor[:, :, None] * q.astype(np.float32) - offset[:, :, None]
    return values.reshape(count, -1)


_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    Q8_0.name: _decode_q8_0,
    Q6_K.name: _decode_q6_k,
    Q4_K.name: _decode_q4_k,
}
_ENCODERS: dict[str, Callable[[Floats], Bytes]] = {Q8_0.name: _encode_q8_0, Q6_K.name: _encode_q6_k}
