"""The definitions against what plain loops make of the papers' formulas (tests/golden/make_variants.py)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.quant_config import InputKind, LinearRecipe
from bitnet.quantize.activations import quantize_activations
from bitnet.quantize.linear import quantize_input, quantized_linear
from bitnet.quantize.packing import pack, pack_1bit, unpack, unpack_1bit
from bitnet.quantize.rotation import block_size, hadamard
from bitnet.quantize.weights import quantize_weight

GOLDEN = Path(__file__).parents[2] / "golden"
GOLD = np.load(GOLDEN / "variants.npz")
NAMES = sorted({name.split("/")[0] for name in GOLD.files} - {"x", "weight", "norm"})
KINDS: tuple[InputKind, ...] = ("int8", "int8-top50", "int4", "fp4", "int1")


def recipe(name):
    spec = importlib.util.spec_from_file_location("make_variants", GOLDEN / "make_variants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return LinearRecipe(*module.RECIPES[name])


@pytest.mark.parametrize("name", NAMES)
def test_weights(name):
    codes, scales = quantize_weight(GOLD["weight"], recipe(name))
    assert np.array_equal(codes, GOLD[f"{name}/codes"])
    assert np.array_equal(scales, GOLD[f"{name}/scales"])


@pytest.mark.parametrize("name", NAMES)
def test_inputs(name):
    codes, scales = quantize_input(GOLD["x"], recipe(name), GOLD["norm"])
    assert np.array_equal(codes, GOLD[f"{name}/x_codes"])
    np.testing.assert_allclose(scales, GOLD[f"{name}/x_scales"], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_products(name):
    codes, scales = GOLD[f"{name}/codes"], GOLD[f"{name}/scales"]
    sums, y = quantized_linear(GOLD["x"], codes, scales, recipe(name), GOLD["norm"])
    assert np.array_equal(sums, GOLD[f"{name}/sums"])
    np.testing.assert_allclose(y, GOLD[f"{name}/y"], rtol=1e-5, atol=1e-6)
    bias = np.arange(len(codes), dtype=np.float32)
    assert np.array_equal(
        quantized_linear(GOLD["x"], codes, scales, recipe(name), GOLD["norm"], bias)[1], y + bias
    )


def test_fp4_codes_are_the_representable_numbers_and_ties_are_even():
    ties = np.array([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0, 6.0]], np.float32)
    codes, scale = quantize_activations(ties, "fp4")
    assert scale[0, 0] == 2
    assert codes.tolist() == [[0, 2, 2, 4, 4, 8, 8, 0, -8, 12]]
    codes, _ = quantize_activations(np.linspace(-6, 6, 4001, dtype=np.float32), "fp4")
    assert sorted(set(codes.tolist())) == [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]


def test_equal_magnitudes_stay_together():
    codes, _ = quantize_activations(np.array([1.0, -2.0, 2.0, 2.0, 0.5], np.float32), "int8-top50")
    assert codes.tolist() == [0, -127, 127, 127, 0]


@given(st.sampled_from(KINDS), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30))
def test_a_token_does_not_see_its_company(kind, width, seed, size):
    x = (np.random.default_rng(seed).standard_normal((3, width)) * size).astype(np.float32)
    codes, scale = quantize_activations(x, kind)
    assert codes.shape == x.shape
    assert scale.shape == (3, 1)
    assert np.isfinite(scale).all()
    for i in range(3):
        alone, its_scale = quantize_activations(x[i], kind)
        assert np.array_equal(alone, codes[i])
        assert its_scale == scale[i]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_non_finite(kind):
    codes, scale = quantize_activations(np.zeros((1, 4), np.float32), kind)
    assert set(codes[0].tolist()) == ({-1} if kind == "int1" else {0})
    assert np.isfinite(scale).all()
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_activations(np.array([1.0, np.nan], np.float32), kind)


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_rotating_twice_is_no_rotation(width, seed):
    x = np.random.default_rng(seed).standard_normal((2, width), dtype=np.float32)
    turned = hadamard(x)
    np.testing.assert_allclose(hadamard(turned), x, atol=1e-5)
    np.testing.assert_allclose((turned**2).sum(), (x**2).sum(), rtol=1e-5)
    assert width % block_size(width) == 0


def test_an_outlier_is_spread():
    x = np.zeros(64, np.float32)
    x[5] = 8
    assert np.abs(hadamard(x)).tolist() == [1.0] * 64


def test_binary_codes_split_at_the_mean():
    weight = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    codes, scales = quantize_weight(weight, LinearRecipe("binary"))
    assert codes.tolist() == [[-1, -1], [-1, 1]]  # 3 is the mean, and Sign(0) is -1
    assert scales.tolist() == [3.0]


@pytest.mark.parametrize("groups", [(5, 1), (1, 5)])
def test_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match="cannot be split into 5 groups"):
        quantize_weight(np.ones((8, 8), np.float32), LinearRecipe("ternary", *groups))


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_binary_packing(eighth, columns, seed):
    codes = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(8 * eighth, columns))
    packed = pack_1bit(codes)
    assert packed.shape == (eighth, columns)
    assert packed[0, 0] >> 3 & 1 == (codes[3 * eighth, 0] > 0)
    assert np.array_equal(unpack_1bit(packed), codes)
    assert np.array_equal(unpack(pack(codes, "binary"), "binary"), codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.ones((12, 2), np.int8), "multiple of 8"),
        (np.ones(8, np.int8), "multiple of 8"),
        (np.ones((8, 2), np.int16), "expected int8"),
        (np.zeros((8, 2), np.int8), "other than -1 and"),
    ],
)
def test_what_is_not_binary(codes, message):
    with pytest.raises(ValueError, match=message):
        pack_1bit(codes)


def test_packed_must_be_bytes():
    with pytest.raises(ValueError, match="expected a uint8 matrix"):
        unpack_1bit(np.zeros((2, 2), np.int8))
