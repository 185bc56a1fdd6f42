"""The quantisers against values recorded from transformers: integers equal, floats within 1e-5."""

from pathlib import Path

import numpy as np
import pytest

from bitnet.quantize.activations import quantize_int8
from bitnet.quantize.bfloat16 import round_to_bfloat16
from bitnet.quantize.packing import pack_2bit, unpack_2bit
from bitnet.quantize.weights import ternarize

GOLDEN = Path(__file__).parents[2] / "golden" / "ops.npz"


@pytest.fixture(scope="module")
def ops():
    return np.load(GOLDEN)


def test_weight_quantiser_float32(ops):
    codes, scale = ternarize(ops["W_bf16_as_f32"])
    assert np.array_equal(codes, np.sign(ops["wq_f32"]))
    np.testing.assert_allclose(codes * scale, ops["wq_f32"], rtol=1e-5)


def test_weight_quantiser_rounded_to_bfloat16(ops):
    codes, scale = ternarize(ops["W_bf16_as_f32"])
    assert np.array_equal(codes, np.sign(ops["wq_bf16"]))
    np.testing.assert_array_equal(round_to_bfloat16(codes * scale), ops["wq_bf16"])


def test_activation_quantiser_float32(ops):
    codes, scale = quantize_int8(ops["X_bf16_as_f32"])
    assert np.array_equal(codes, ops["bitlinear_act_int8_f32"])
    np.testing.assert_allclose(scale, ops["bitlinear_act_scale_f32"], rtol=1e-5)
    np.testing.assert_allclose(codes / scale, ops["aq_f32"], rtol=1e-5)


def test_activation_quantiser_rounded_to_bfloat16(ops):
    codes, scale = quantize_int8(ops["X_bf16_as_f32"])
    np.testing.assert_array_equal(round_to_bfloat16(codes / scale), ops["aq_bf16"])


def test_bfloat16_arithmetic_is_reproduced_by_rounding_each_result(ops):
    """transformers' BitLinear quantises in bfloat16: every step rounded, the codes differ from float32's."""
    x = ops["X_bf16_as_f32"]
    absmax = np.maximum(np.abs(x).max(axis=-1, keepdims=True), round_to_bfloat16(1e-5))
    scale = round_to_bfloat16(127 * round_to_bfloat16(1 / absmax))  # torch computes 127 / t as 127 * (1 / t)
    codes = np.clip(np.rint(round_to_bfloat16(x * scale)), -128, 127).astype(np.int8)
    assert np.array_equal(codes, ops["bitlinear_act_int8_bf16"])
    np.testing.assert_array_equal(scale, ops["bitlinear_act_scale_bf16"])


def test_packing(ops):
    assert np.array_equal(pack_2bit(ops["tern"]), ops["tern_packed"])
    assert np.array_equal(unpack_2bit(ops["tern_packed"]), ops["tern"])
