"""The quantisers in PyTorch against their definition in NumPy: codes and factors equal, to the bit."""

from typing import get_args

import numpy as np
import pytest
import torch

from bitnet.nn.quantizers import input_codes, int8_codes, scale_codes, ternary_codes, weight_codes
from bitnet.quant_config import InputKind, LinearRecipe
from bitnet.quantize.activations import quantize_activations
from bitnet.quantize.weights import quantize_weight

SHAPES = [(4, 1), (64, 130), (192, 448), (768, 256)]
KINDS = get_args(InputKind)


@pytest.fixture(scope="module")
def ops(golden):
    return np.load(golden / "ops.npz")


def values_of(shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    values[0] = 0
    values[1] *= 1e-34  # published masters hold such dead rows
    return values


def test_quantisers_give_the_recorded_codes_and_values(ops):
    codes, scale = ternary_codes(torch.from_numpy(ops["W_bf16_as_f32"]))
    np.testing.assert_allclose((codes * scale).numpy(), ops["wq_f32"], rtol=1e-6)
    np.testing.assert_array_equal(codes.numpy(), np.sign(ops["wq_f32"]))
    codes, scale = int8_codes(torch.from_numpy(ops["X_bf16_as_f32"]))
    np.testing.assert_array_equal(codes.numpy(), ops["bitlinear_act_int8_f32"])
    np.testing.assert_allclose((codes / scale).numpy(), ops["aq_f32"], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", ["ternary", "binary"])
def test_weights_equal_their_definition(weights, shape):
    values = values_of(shape)
    groups = [{}, {"row_groups": shape[0]}, {"row_groups": 2}]
    groups += [{"column_groups": 2}] if shape[1] % 2 == 0 else []
    for group in groups:
        recipe = LinearRecipe(weights, **group)
        codes, scales = weight_codes(torch.from_numpy(values), recipe)
        expected_codes, expected_scales = quantize_weight(values, recipe)
        np.testing.assert_array_equal(codes.numpy(), expected_codes)
        np.testing.assert_array_equal(scales.numpy(), expected_scales)
        rows, columns = shape[0] // recipe.row_groups, shape[1] // recipe.column_groups
        blocks = np.kron(
            expected_scales.reshape(recipe.row_groups, recipe.column_groups), np.ones((rows, columns))
        )
        found = scale_codes(codes, scales, recipe).numpy()
        np.testing.assert_array_equal(found, expected_codes * blocks.astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_equal_their_definition(kind, shape):
    values = values_of(shape)
    values[2] = np.round(values[2])  # ties: in rounding, and of magnitudes
    codes, scales = input_codes(torch.from_numpy(values), kind)
    expected_codes, expected_scales = quantize_activations(values, kind)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    np.testing.assert_array_equal(scales.numpy(), expected_scales)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_group_is_a_vector_of_its_own(kind):
    x = torch.randn(2, 5, 3, 21)
    codes, scales = input_codes(x, kind)
    for index in np.ndindex(2, 5, 3):
        one, scale = input_codes(x[index], kind)
        assert torch.equal(codes[index], one)
        assert torch.equal(scales[index], scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_not_finite_stays_so_and_alone(kind):
    x = torch.randn(3, 20)
    clean = input_codes(x, kind)
    x[1, 4] = torch.nan
    codes, scales = input_codes(x, kind)
    assert (codes / scales)[1].isnan().any()
    for one, other in zip((codes, scales), clean, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_as_they_were(kind):
    x = torch.randn(3, 20)
    before = x.clone()
    input_codes(x, kind)
    assert torch.equal(x, before)
