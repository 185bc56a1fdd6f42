"""Cached keys and values in few bits: the definition against a slow twin, and PyTorch's restatement."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet.nn.cache import round_heads
from bitnet.quantize.kv_cache import bits_at, bytes_per_head, quantize_head, restore_head

BITS = pytest.mark.parametrize("bits", [8, 4, 3])


def heads(scale, count=50, head_dim=34):
    return (np.random.default_rng(3).normal(size=(count, head_dim)) * scale).astype(np.float32)


def hostile_heads():
    """Scales from nothing to beyond float16, signs of zero, equal values, and what is no number."""
    x = np.concatenate([heads(scale) for scale in (0, 1e-8, 1e-3, 1, 1e5, 1e30, 3e37)])
    x[0] = -0.0
    x[1, ::2] = -0.0
    x[60] = 0.1
    x[160, 5] = np.inf
    x[161, 0] = np.nan
    x[162, 7] = -np.inf
    return x


def exact_codes(x, low, high, bits):
    """Rational arithmetic, half to even."""
    step = (Fraction(high) - Fraction(low)) / 2**bits
    return [min(max(round((Fraction(v) - Fraction(low)) / step - Fraction(1, 2)), 0), 2**bits - 1) for v in x]


@BITS
def test_codes_and_ranges_of_a_slow_twin(bits):
    x = np.round(heads(1) * 64) / 64  # on this grid float32 computes without rounding, but for the factor
    codes, ends = quantize_head(x, bits)
    for row, found, (low, high) in zip(x, codes, ends, strict=True):
        assert (low, high) == (np.float16(row.min()), np.float16(row.max()))
        expected = exact_codes(map(float, row), float(low), float(high), bits)
        assert np.abs(np.array(expected) - found).max() <= 1
        assert np.mean(np.array(expected) == found) > 0.9


@BITS
def test_values_return_to_the_middle_of_their_bins(bits):
    x = np.linspace(-2, 6, 2**bits * 8 + 1, dtype=np.float32)
    codes, ends = quantize_head(x, bits)
    assert ends.tolist() == [-2.0, 6.0]
    assert sorted(set(codes.tolist())) == list(range(2**bits))
    step = 8 / 2**bits
    restored = restore_head(codes, ends, bits)
    np.testing.assert_array_equal(np.unique(restored), np.arange(2**bits) * step - 2 + step / 2)
    assert np.abs(restored - x).max() == step / 2


@BITS
@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=40))
def test_no_value_moves_by_more_than_half_a_bin(bits, values):
    x = np.array(values, dtype=np.float32)
    restored = restore_head(*quantize_head(x, bits), bits)
    width = float(x.max()) - float(x.min())
    slack = 2.0**-10 * float(np.abs(x).max()) + 2.0**-24  # of the float16 ends
    assert np.abs(restored - x).max() <= width / 2 ** (bits + 1) + slack


@BITS
def test_equal_values_are_kept(bits):
    for value in (0.0, -0.0, 1.5, -3.0):
        codes, ends = quantize_head(np.full((2, 8), value), bits)
        assert not codes.any()
        np.testing.assert_array_equal(restore_head(codes, ends, bits), np.full((2, 8), value))
    assert not np.signbit(quantize_head(np.full(8, -0.0), bits)[1]).any()


@BITS
def test_huge_values_stay_finite(bits):
    codes, ends = quantize_head(np.array([-1e38, 0, 7e4, 3e38]), bits)
    assert ends.tolist() == [-65504, 65504]
    assert codes.tolist() == [0, 2 ** (bits - 1), 2**bits - 1, 2**bits - 1]  # 0 is a tie: to the even code
    assert np.isfinite(restore_head(codes, ends, bits)).all()


@BITS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(bits, value):
    codes, ends = quantize_head(np.array([[1.0, value, 2.0], [1.0, 2.0, 3.0]]), bits)
    assert not codes[0].any()
    assert np.isnan(restore_head(codes, ends, bits)[0]).all()
    assert np.isfinite(restore_head(codes, ends, bits)[1]).all()


@BITS
def test_torch_restores_the_same_bits(bits):
    x = hostile_heads()
    expected = restore_head(*quantize_head(x, bits), bits)
    np.testing.assert_array_equal(round_heads(torch.from_numpy(x), bits).numpy(), expected)


def test_only_the_first_token_of_3_bits_has_more():
    assert [bits_at(0, bits) for bits in (16, 8, 4, 3)] == [16, 8, 4, 4]
    assert [bits_at(1, bits) for bits in (16, 8, 4, 3)] == [16, 8, 4, 3]


def test_bytes():
    assert [bytes_per_head(128, bits) for bits in (16, 8, 4, 3)] == [512, 264, 136, 104]
    assert bytes_per_head(34, 3) == 2 * (math.ceil(34 * 3 / 8) + 4)
