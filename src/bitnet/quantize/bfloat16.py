"""bfloat16 without a bfloat16 dtype: the upper half of a float32, held as uint16.

Widening is exact; narrowing rounds half to even, as hardware and torch do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 `bits`; exact, same shape."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: ArrayLike) -> NDArray[np.uint16]:
    """The bfloat16 bits nearest to float32 `values`, ties to even, same shape.

    Too large values become infinity; NaN stays NaN.
    """
    wide = np.asarray(values, dtype=np.float32)
    bits = wide.reshape(-1).view(np.uint32)
    # 0x7FFF plus the bit that becomes the last one carries exactly when half-to-even rounds up
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    nan = np.isnan(wide.reshape(-1))
    if nan.any():  # the carry would turn some of them into infinity, or wrap around
        rounded[nan] = np.uint32(0x7FC0)
    return rounded.astype(np.uint16).reshape(wide.shape)


def round_to_bfloat16(values: ArrayLike) -> NDArray[np.float32]:
    """Float32 `values` rounded to what bfloat16 can hold."""
    return widen(narrow(values))
