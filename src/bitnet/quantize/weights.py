"""The b1.58 weight quantiser.

codes = clip(round(w / scale), -1, 1), scale = max(mean(|w|), 1e-5), one scale a matrix (arXiv 2402.17764,
eq. 1-3). Rounding is half-to-even; the mean is summed in float64, because a float32 sum depends on its order
and flips codes near the threshold. The division is a float32 multiplication by 1 / scale, as in transformers'
AutoBitLinear: the two round differently.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_SCALE = 1e-5  # keeps the quotient finite for an all-zero matrix


def ternarize(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], np.float32]:
    """Quantise a weight matrix to {-1, 0, +1}.

    Args:
        weight: float, (out_features, in_features).
    Returns:
        codes (int8, same shape) and scale; codes * scale approximates weight.
    Raises:
        ValueError: weight is not 2-D, is empty, or holds NaN or infinity.
    """
    values = np.asarray(weight, dtype=np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"weight has shape {values.shape}; expected (out_features, in_features)")
    scratch = np.abs(values)
    mean = scratch.mean(dtype=np.float64)
    if not np.isfinite(mean):
        raise ValueError("weight holds NaN or infinity")
    scale = np.float32(max(mean, MIN_SCALE))
    np.multiply(values, np.float32(1) / scale, out=scratch)
    np.rint(scratch, out=scratch)
    np.clip(scratch, -1, 1, out=scratch)
    return scratch.astype(np.int8), scale
