"""The weight quantisers: ternary (arXiv 2402.17764, eq. 1-3) and binary (arXiv 2310.11453, eq. 1-3).

    ternary   codes = clip(round(w / scale), -1, 1)            scale = max(mean|w|, 1e-5)
    binary    codes = +1 where w > mean(w), -1 elsewhere       scale = max(mean|w|, 1e-5)

The means are over the whole matrix, or over each of its blocks: one a row, or one a group. Rounding is
half-to-even; means are summed in float64, because a float32 sum depends on its order and flips codes near the
threshold. The division is a float32 multiplication by 1 / scale, as in transformers' AutoBitLinear: the two
round differently.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.quant_config import LinearRecipe

MIN_SCALE = 1e-5  # keeps the quotient finite for an all-zero matrix


def quantize_weight(
    weight: NDArray[np.floating], recipe: LinearRecipe
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a weight matrix as a recipe says.

    Args:
        weight: float, (out_features, in_features).
    Returns:
        codes (int8, same shape) and scales (float32, (recipe.scales,)), of the row groups or the column
        groups in order.
    Raises:
        ValueError: weight is not 2-D, is empty, holds NaN or infinity, or cannot be split into the groups.
    """
    values = np.asarray(weight, dtype=np.float32)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"weight has shape {values.shape}; expected (out_features, in_features)")
    rows, columns = values.shape
    if rows % recipe.row_groups or columns % recipe.column_groups:
        raise ValueError(f"weight of shape {values.shape} cannot be split into {recipe.scales} groups")
    split = (
        recipe.row_groups,
        rows // recipe.row_groups,
        recipe.column_groups,
        columns // recipe.column_groups,
    )
    blocks, scratch = values.reshape(split), np.abs(values).reshape(split)
    means = scratch.mean(axis=(1, 3), dtype=np.float64, keepdims=True)
    if not np.isfinite(means).all():
        raise ValueError("weight holds NaN or infinity")
    scales = np.maximum(means, MIN_SCALE).astype(np.float32)
    if recipe.weights == "binary":
        middle = blocks.mean(axis=(1, 3), dtype=np.float64, keepdims=True).astype(np.float32)
        codes = np.where(blocks > middle, np.int8(1), np.int8(-1))
    else:
        np.multiply(blocks, np.float32(1) / scales, out=scratch)
        np.rint(scratch, out=scratch)
        np.clip(scratch, -1, 1, out=scratch)
        codes = scratch.astype(np.int8)
    return codes.reshape(rows, columns), scales.reshape(-1)


def ternarize(weight: NDArray[np.floating]) -> tuple[NDArray[np.int8], np.float32]:
    """`quantize_weight` to {-1, 0, +1} with one scale: codes (int8, same shape) and scale."""
    codes, scales = quantize_weight(weight, LinearRecipe())
    return codes, np.float32(scales[0])
