"""FrozenBitLinear: a projection of a packed checkpoint, on its integer codes; `bitnet.quantize.linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnet.nn.bitlinear import add_norm, check_groups, prepare_input
from bitnet.nn.quantizers import input_codes, split_columns
from bitnet.quant_config import LinearRecipe

_PLAIN = LinearRecipe()


class FrozenBitLinear(nn.Module):
    """y = Σ over column groups (codes · x_codes) · scale / s, + b.

    Products are those of integers in float32, exact below 131,072 inputs a column group. A norm inside is the
    submodule `rms_norm` or `layer_norm`.

    Attributes:
        codes: int8, (out_features, in_features).
        scales: float32 (recipe.scales,), in the multiplying convention.
        bias: float32, (out_features,), or None.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, recipe: LinearRecipe = _PLAIN
    ) -> None:
        """Raises InputError: the matrix cannot be split into the recipe's groups."""
        super().__init__()
        check_groups(in_features, out_features, recipe)
        self.recipe = recipe
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(recipe.scales))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        add_norm(self, in_features, recipe)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in x's type."""
        recipe = self.recipe
        scales = self.scales.float()
        # one scale for each column group, or one for each output of the only group
        if recipe.column_groups == 1:
            scales = scales.repeat_interleave(len(self.codes) // recipe.row_groups)[None]
        sums, s = self.integer_products(x)
        y = sums[..., 0, :] * (scales[0] / s[..., 0, :])
        for group in range(1, recipe.column_groups):
            y = y + sums[..., group, :] * (scales[group] / s[..., group, :])
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(x.dtype)

    def integer_products(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of integers, and the factors the inputs' codes were made by.

        Returns:
            float32 (..., column_groups, out_features) and (..., column_groups, 1).
        """
        groups = self.recipe.column_groups
        parts = split_columns(prepare_input(self, x, self.recipe), groups)
        codes, s = input_codes(parts, self.recipe.inputs)
        weights = self.codes.float().chunk(groups, dim=1)
        products = [F.linear(codes[..., group, :], weight) for group, weight in enumerate(weights)]
        return torch.stack(products, dim=-2), s
