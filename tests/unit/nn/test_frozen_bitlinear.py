"""FrozenBitLinear of every recipe: codes and sums of integers equal those of the definition."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from bitnet.nn import BitLinear, FrozenBitLinear
from bitnet.nn.bitlinear import prepare_input
from bitnet.nn.quantizers import input_codes, split_columns
from bitnet.quant_config import InputKind, LinearRecipe
from bitnet.quantize.linear import quantize_input, quantized_linear
from bitnet.quantize.weights import quantize_weight

GROUPS = [{}, {"row_groups": 20}, {"row_groups": 4}, {"column_groups": 3}]
BEFORE = [{}, {"norm": "rms"}, {"norm": "layer"}, {"rotate": True}, {"rotate": True, "norm": "rms"}]
RECIPES = [
    LinearRecipe(weights=weights, inputs=inputs, **groups, **before)
    for weights, inputs, groups, before in itertools.product(
        ("ternary", "binary"), get_args(InputKind), GROUPS, BEFORE
    )
    if not (before.get("rotate") and "column_groups" in groups)
]


def make(recipe, columns):
    """A layer with 20 outputs, and the arguments of `quantized_linear` for its weight."""
    random = np.random.default_rng(columns)
    codes, scales = quantize_weight(random.normal(size=(20, columns)).astype(np.float32), recipe)
    bias = random.normal(size=20).astype(np.float32)
    weight = random.normal(size=columns).astype(np.float32) + 1 if recipe.norm else None
    layer = FrozenBitLinear(columns, 20, recipe=recipe)
    state = {"codes": codes, "scales": scales, "bias": bias}
    if weight is not None:
        state[f"{recipe.norm}_norm.weight"] = weight
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return layer.requires_grad_(False), codes, scales, weight, bias


@pytest.mark.parametrize("columns", [3, 33, 96])
def test_integers_equal_the_definition_for_every_recipe(columns):
    x = np.random.default_rng(1).normal(size=(7, columns)).astype(np.float32)
    x[3] = 0
    for recipe in RECIPES:
        layer, codes, scales, weight, bias = make(recipe, columns)
        expected_codes, factors = quantize_input(x, recipe, weight)
        parts = split_columns(prepare_input(layer, torch.from_numpy(x), recipe), recipe.column_groups)
        found_codes, found_factors = input_codes(parts, recipe.inputs)
        np.testing.assert_array_equal(found_codes.numpy(), expected_codes, err_msg=str(recipe))
        np.testing.assert_allclose(found_factors.numpy(), factors, rtol=1e-6, err_msg=str(recipe))
        expected_sums, expected = quantized_linear(x, codes, scales, recipe, weight, bias)
        sums, _ = layer.integer_products(torch.from_numpy(x))
        np.testing.assert_array_equal(sums.numpy(), expected_sums, err_msg=str(recipe))
        found = layer(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=str(recipe))


@pytest.mark.parametrize("bias", [True, False])
def test_gives_what_the_masters_gave(bias):
    for recipe in RECIPES:
        torch.manual_seed(2)
        layer = BitLinear(66, 20, bias=bias, recipe=recipe).requires_grad_(False)
        frozen = FrozenBitLinear(66, 20, bias=bias, recipe=recipe)
        codes, scales = quantize_weight(layer.weight.numpy(), recipe)
        state = layer.state_dict()
        del state["weight"]
        state |= {"codes": torch.from_numpy(codes), "scales": torch.from_numpy(scales)}
        frozen.load_state_dict(state)
        x = torch.randn(2, 4, 66)
        torch.testing.assert_close(frozen(x), layer(x))


def test_sums_of_wide_rows_are_exact():
    """127 * 6912 needs 20 bits, float32 has 24."""
    layer = FrozenBitLinear(6912, 4, bias=False)
    layer.codes.fill_(-1)
    sums, s = layer.integer_products(torch.ones(2, 6912))
    assert (sums == -127 * 6912).all()
    assert (s == 127).all()
