"""Cached keys and values in 8, 4 or 3 bits: unsigned, one absolute maximum a head (arXiv 2411.04965).

    m = max|x|     codes = round((x / m + 1) L / 2),  L = 2^bits - 1     x ≈ (2 codes / L - 1) m

One maximum for each token, key/value head, and of keys and values; keys are taken after the rotary embedding.
With 3 bits the first token of a sequence keeps 4: every later one attends to it. m is stored in float16,
rounded to nearest; a value that rounding puts beyond m takes the last code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_MAGNITUDE = 2.0**-14  # the smallest normal float16; a head of zeros divides by it
MAX_MAGNITUDE = 65504.0  # the largest one


def bits_at(position: int, bits: int) -> int:
    """Bits of a token's entries: the first token has 4 where the others have 3."""
    return 4 if bits == 3 and position == 0 else bits


def quantize_head(x: NDArray[np.floating], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Quantise heads.

    Args:
        x: float, (..., head_dim); computed in float32.
        bits: 3, 4 or 8.
    Returns:
        codes uint8 (..., head_dim) in 0..2^bits-1 and magnitude float16 (..., 1).
    """
    values = np.asarray(x, dtype=np.float32)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    magnitude = np.clip(largest, MIN_MAGNITUDE, MAX_MAGNITUDE).astype(np.float16)
    levels = 2**bits - 1
    factor = np.float32(levels / 2) / magnitude.astype(np.float32)
    codes = np.clip(np.rint(values * factor + np.float32(levels / 2)), 0, levels).astype(np.uint8)
    return codes, magnitude


def restore_head(codes: NDArray[np.uint8], magnitude: NDArray[np.float16], bits: int) -> NDArray[np.float32]:
    """The values that codes stand for: float32, the shape of `codes`."""
    levels = 2**bits - 1
    step = magnitude.astype(np.float32) * np.float32(2 / levels)
    centred = codes.astype(np.float32) - np.float32(levels / 2)  # exact: multiples of a half
    restored: NDArray[np.float32] = centred * step
    return restored
