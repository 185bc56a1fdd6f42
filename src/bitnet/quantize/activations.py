"""The b1.58 activation quantiser: int8 absmax, one scale a token.

codes = clip(round(x * scale), -128, 127), scale = 127 / max(max|x|, 1e-5) over the last axis
(arXiv 2402.17764, section 2). All in float32, half-to-even; x is approximately codes / scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_ABSMAX = 1e-5  # an all-zero token quantises to zeros instead of dividing by zero


def quantize_int8(x: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations to int8, one scale for each vector along the last axis.

    Args:
        x: float, (..., k); computed in float32.
    Returns:
        codes int8 (..., k) and scale float32 (..., 1); codes / scale approximates x.
    Raises:
        ValueError: x has no axis, k is 0, or x holds NaN or infinity.
    """
    values = np.asarray(x, dtype=np.float32)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"x has shape {values.shape}; expected (..., k) with k >= 1")
    absmax = np.abs(values).max(axis=-1, keepdims=True)
    if not np.isfinite(absmax).all():
        raise ValueError("x holds NaN or infinity")
    scale: NDArray[np.float32] = np.float32(127) / np.maximum(absmax, np.float32(MIN_ABSMAX))
    codes = np.clip(np.rint(values * scale), -128, 127).astype(np.int8)
    return codes, scale
