"""A quantised projection from beginning to end: what every engine computes, as plainly as it can be said.

    q, s = quantise(rotate(norm(x)))      y = Σ over column groups g: (codes_g · q_g) · scale_g / s_g  + bias

With one column group this is BitLinear; the rows of a row group share a weight scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.quant_config import LinearRecipe
from bitnet.quantize.activations import quantize_activations
from bitnet.quantize.norms import normalise
from bitnet.quantize.rotation import hadamard


def quantize_input(
    x: NDArray[np.float32], recipe: LinearRecipe, norm_weight: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The integers a projection multiplies.

    Args:
        x: float32, (tokens, in_features).
        norm_weight: float32, (in_features,), where the recipe has a norm.
    Returns:
        codes int8 (tokens, column_groups, in_features / column_groups) and scale float32 (tokens,
        column_groups, 1).
    """
    tokens, width = x.shape
    parts = np.asarray(x, dtype=np.float32).reshape(
        tokens, recipe.column_groups, width // recipe.column_groups
    )
    if recipe.norm is not None and norm_weight is not None:
        parts = normalise(parts, norm_weight.reshape(parts.shape[1:]), recipe.norm, recipe.norm_eps)
    if recipe.rotate:
        parts = hadamard(parts)
    return quantize_activations(parts, recipe.inputs)


def quantized_linear(
    x: NDArray[np.float32],
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    recipe: LinearRecipe,
    norm_weight: NDArray[np.float32] | None = None,
    bias: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A projection on its integers.

    Args:
        x: float32, (tokens, in_features).
        codes, scales: of `quantize_weight`.
    Returns:
        The exact sums, int32 (tokens, column_groups, out_features), and the output, float32 (tokens,
        out_features).
    """
    inputs, input_scales = quantize_input(x, recipe, norm_weight)
    rows = codes.shape[0]
    weights = codes.reshape(rows, recipe.column_groups, -1).astype(np.int32)
    sums = np.einsum("tgk,ngk->tgn", inputs.astype(np.int32), weights)
    if recipe.column_groups > 1:
        factors = scales.reshape(1, -1, 1) / input_scales
    else:
        factors = np.repeat(scales, rows // recipe.row_groups).reshape(1, 1, rows) / input_scales
    y: NDArray[np.float32] = (sums * factors).astype(np.float32).sum(axis=1, dtype=np.float32)
    return sums.astype(np.int32), y if bias is None else y + bias
