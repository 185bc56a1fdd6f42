"""The norms inside projections, float32: RMSNorm (arXiv 1910.07467) and LayerNorm without a bias.

rms     y = x / √(mean x² + eps) · w
layer   y = (x - mean x) / √(mean (x - mean x)² + eps) · w      (SubLN of arXiv 2310.11453)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.quant_config import NormKind


def normalise(
    x: NDArray[np.float32], weight: NDArray[np.float32], kind: NormKind, eps: float
) -> NDArray[np.float32]:
    """Normalise the last axis: (..., width) with weight (width,) -> the same shape."""
    values = np.asarray(x, dtype=np.float32)
    if kind == "layer":
        values = values - values.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    square = (values * values).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    result: NDArray[np.float32] = values * (np.float32(1) / np.sqrt(square + np.float32(eps))) * weight
    return result
