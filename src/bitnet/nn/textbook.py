"""BitLinear as papers write it, by detach and in float32: the reference that `BitLinear` is held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bitnet.nn.quantizers import input_codes, split_columns, weight_codes
from bitnet.quant_config import LinearRecipe
from bitnet.quantize.rotation import block_size


def bit_linear_by_detach(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    recipe: LinearRecipe | None = None,
    norm_weight: Tensor | None = None,
    strength: float = 1.0,
    quantise_input: bool = True,
) -> Tensor:
    """x + λ(x̂ - x).detach() for the input behind norm and rotation, and for the weight.

    Args:
        x: float32, (..., in_features).
        recipe: None is b1.58's.
        norm_weight: (in_features,), where the recipe has a norm.
    """
    recipe = recipe or LinearRecipe()
    parts = split_columns(x, recipe.column_groups)
    if recipe.norm is not None and norm_weight is not None:
        if recipe.norm == "layer":
            parts = parts - parts.mean(-1, keepdim=True)
        parts = parts / (parts.square().mean(-1, keepdim=True) + recipe.norm_eps).sqrt()
        parts = parts * split_columns(norm_weight, recipe.column_groups)
    if recipe.rotate:
        parts = parts @ hadamard_matrix(parts.shape[-1])
    if quantise_input:
        codes, scale = input_codes(parts.detach(), recipe.inputs)
        parts = parts + strength * (codes / scale - parts).detach()
    codes, scales = weight_codes(weight.detach(), recipe)
    blocks = codes.view(recipe.row_groups, len(codes) // recipe.row_groups, recipe.column_groups, -1)
    quantised = (blocks * scales.view(recipe.row_groups, 1, recipe.column_groups, 1)).view(weight.shape)
    return F.linear(parts.flatten(-2), weight + strength * (quantised - weight).detach(), bias)


def hadamard_matrix(width: int) -> Tensor:
    """The matrix of `bitnet.quantize.rotation`, block-diagonal and orthogonal, (width, width)."""
    block = torch.ones(1, 1)
    while len(block) < block_size(width):
        block = torch.cat((torch.cat((block, block), 1), torch.cat((block, -block), 1)))
    matrix = torch.zeros(width, width)
    for start in range(0, width, len(block)):
        matrix[start : start + len(block), start : start + len(block)] = block / len(block) ** 0.5
    return matrix
