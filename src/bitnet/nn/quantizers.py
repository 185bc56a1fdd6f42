"""The quantisers of `bitnet.quantize` in PyTorch: codes and factors, both float32, integers the same.

Scales and codes are computed in float32 whatever the compute type: in bfloat16 the detach trick leaves seven
distinct weight values instead of three. Rounding is half-to-even, and means are summed in float64. A NaN of
an input stays one, so that a bad step is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bitnet.quant_config import InputKind, LinearRecipe

_SMALLEST = 1e-5  # lower bound of maxima and means, arXiv 2402.17764's code
_PLAIN = LinearRecipe()


def weight_codes(weight: Tensor, recipe: LinearRecipe) -> tuple[Tensor, Tensor]:
    """Quantise a weight as a recipe says.

    Args:
        weight: floating point, (out_features, in_features).
    Returns:
        codes, float32 of the same shape, and scales, float32 (recipe.scales,); see `scale_codes`.
    """
    return binary_codes(weight, recipe) if recipe.weights == "binary" else ternary_codes(weight, recipe)


def ternary_codes(weight: Tensor, recipe: LinearRecipe = _PLAIN) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, +1} and their scales: absmean over each block, as `weight_codes`."""
    scales = _block_means(weight.abs(), recipe).clamp(min=_SMALLEST).float()
    reciprocals = _spread(scales.reciprocal(), weight, recipe)
    return (weight.float() * reciprocals).round_().clamp_(-1, 1), scales


def binary_codes(weight: Tensor, recipe: LinearRecipe) -> tuple[Tensor, Tensor]:
    """Codes in {-1, +1}, the sides of each block's mean, and absmean scales, as `weight_codes`."""
    scales = _block_means(weight.abs(), recipe).clamp(min=_SMALLEST).float()
    return (weight > middle_of(weight, recipe)).float().mul_(2).sub_(1), scales


def middle_of(weight: Tensor, recipe: LinearRecipe) -> Tensor:
    """The mean of each block, float32 in a shape that compares with `weight`."""
    return _spread(_block_means(weight, recipe).float(), weight, recipe)


def scale_codes(codes: Tensor, scales: Tensor, recipe: LinearRecipe) -> Tensor:
    """The weight that codes stand for, written over them."""
    return codes.mul_(_spread(scales, codes, recipe))


def split_columns(x: Tensor, groups: int) -> Tensor:
    """The last dimension cut into column groups: (..., width) -> (..., groups, width / groups)."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def _block_means(values: Tensor, recipe: LinearRecipe) -> Tensor:
    """Means of the row groups or the column groups in order, float64 (recipe.scales,)."""
    if recipe.scales == 1:
        return values.mean(dtype=torch.float64).reshape(1)
    rows, columns = values.shape
    blocks = values.reshape(
        recipe.row_groups, rows // recipe.row_groups, recipe.column_groups, columns // recipe.column_groups
    )
    return blocks.mean(dim=(1, 3), dtype=torch.float64).reshape(-1)


def _spread(scales: Tensor, matrix: Tensor, recipe: LinearRecipe) -> Tensor:
    """A number of each block in the shape that multiplies `matrix`."""
    if recipe.scales == 1:
        return scales
    rows, columns = matrix.shape
    if recipe.row_groups > 1:
        return scales.repeat_interleave(rows // recipe.row_groups)[:, None]
    return scales.repeat_interleave(columns // recipe.column_groups)


def input_codes(x: Tensor, kind: InputKind) -> tuple[Tensor, Tensor]:
    """Quantise activations, one factor for each vector along the last axis.

    Args:
        x: floating point, (..., features).
    Returns:
        codes (..., features) and s (..., 1), float32; codes / s approximates x.
    """
    return _INPUT_QUANTIZERS[kind](x)


def int8_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """-128..127, absolute maximum."""
    x = x.float()
    # the maximum of |x| without a copy of x
    absmax = torch.maximum(x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True).neg_())
    # a Python number over a tensor is its reciprocal times the number, which rounds twice
    scale = x.new_tensor(127.0) / absmax.clamp_(min=_SMALLEST)
    return (x * scale).round_().clamp_(-128, 127), scale


def int8_top50_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the half that is largest in magnitude; equal magnitudes are kept or dropped together."""
    x = x.float()
    magnitudes = x.abs()
    kept = x.shape[-1] - x.shape[-1] // 2
    least = magnitudes.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return int8_codes(x.masked_fill(magnitudes < least, 0.0))


def int4_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """-8..7, absolute mean."""
    x = x.float()
    scale = x.new_tensor(math.sqrt(7)) / _absmean(x)
    return (x * scale).round_().clamp_(-8, 7), scale


def fp4_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the values of E2M1, absolute maximum."""
    x = x.float()
    scale = x.new_tensor(12.0) / x.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST)
    doubled = x * scale
    magnitudes = doubled.abs()
    step = 1.0 + (magnitudes >= 4) + 2.0 * (magnitudes >= 8)  # 1, 2 and 4
    return (doubled / step).round_().mul_(step).clamp_(-12, 12), scale


def int1_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """-1 and +1, absolute mean."""
    x = x.float()
    return (x > 0).float().mul_(2).sub_(1), _absmean(x).reciprocal()


def _absmean(x: Tensor) -> Tensor:
    # widened first: twice as fast as a sum that widens
    return x.double().abs_().mean(dim=-1, keepdim=True).float().clamp_(min=_SMALLEST)


_INPUT_QUANTIZERS: dict[InputKind, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": int8_codes,
    "int8-top50": int8_top50_codes,
    "int4": int4_codes,
    "fp4": fp4_codes,
    "int1": int1_codes,
}
