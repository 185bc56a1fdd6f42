"""Cached keys and values in 8, 4 or 3 bits, unsigned, one range a head (arXiv 2411.04965).

    low, high = min x, max x     step = (high - low) / 2^bits
    codes = clip(round((x - low) / step - 1/2), 0, 2^bits - 1)     x ≈ low + (codes + 1/2) step

The paper quantises heads to unsigned integers by their absolute maximum. How x becomes unsigned is the rule
of the same authors' first paper (2310.11453): min x is subtracted, and the absolute maximum of what is left,
max x - min x, is cut into 2^bits equal bins. A value is restored to the middle of its bin. docs/kv_cache.md
compares this with other readings.

There is one range for each token, key/value head, and of keys and values; keys are taken after the rotary
embedding. With 3 bits the first token of a sequence keeps 4: every later one attends to it. low and high are
stored in float16, rounded to nearest; what rounding puts outside takes the first or the last code.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

# What an engine keeps keys and values in; "auto" follows the model's configuration.
KvType = Literal["auto", "float16", "float32", "int8", "int4", "int3"]

LARGEST = np.float32(65504)  # of float16: a head's ends are kept within it


def bits_at(position: int, bits: int) -> int:
    """Bits of a token's entries: the first token has 4 where the others have 3."""
    return 4 if bits == 3 and position == 0 else bits


def quantize_head(x: NDArray[np.floating], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Quantise heads.

    A head that holds NaN or infinity gets codes 0 and a range of NaN, so that it reaches the logits.

    Args:
        x: float, (..., head_dim); computed in float32.
        bits: 3, 4 or 8.
    Returns:
        codes uint8 (..., head_dim) in 0..2^bits-1 and range float16 (..., 2), low and high.
    """
    values = np.asarray(x, dtype=np.float32)
    finite = np.isfinite(values).all(axis=-1, keepdims=True)
    values = np.where(finite, values, np.float32(0))
    ends = np.concatenate([values.min(axis=-1, keepdims=True), values.max(axis=-1, keepdims=True)], axis=-1)
    # 0 is added to make -0 a +0: which of the two a minimum returns is nobody's promise
    ends = (np.clip(ends, -LARGEST, LARGEST) + np.float32(0)).astype(np.float16)
    low, high = np.split(ends.astype(np.float32), 2, axis=-1)
    width = high - low
    factor = np.divide(np.float32(2**bits), width, out=np.zeros_like(width), where=width > 0)
    codes = np.clip(np.rint((values - low) * factor - np.float32(0.5)), 0, 2**bits - 1).astype(np.uint8)
    return codes, np.where(finite, ends, np.float16(np.nan))


def restore_head(codes: NDArray[np.uint8], ends: NDArray[np.float16], bits: int) -> NDArray[np.float32]:
    """The values that codes stand for: float32, the shape of `codes`."""
    low, high = np.split(ends.astype(np.float32), 2, axis=-1)
    step = (high - low) * np.float32(2.0**-bits)
    restored: NDArray[np.float32] = codes.astype(np.float32) * step + (low + step * np.float32(0.5))
    return restored


def bytes_per_head(head_dim: int, bits: int) -> int:
    """Bytes that the key and the value of one token and head take, ranges included; 16 bits are float16."""
    return 4 * head_dim if bits == 16 else 2 * (-(-head_dim * bits // 8) + 4)
