import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet.quantize.binary import (
    binary_bit_serial_matmul,
    binary_matmul,
    pack_planes,
    pack_signs,
    plane_weights,
    ternary_bit_serial_matmul,
    unpack_planes,
    unpack_signs,
)

signs = hnp.arrays(
    np.int8, st.tuples(st.integers(1, 5), st.integers(1, 37)), elements=st.sampled_from([-1, 1])
)


@st.composite
def coded(draw):
    bits = draw(st.integers(2, 8))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 37)))
    limit = 1 << (bits - 1)
    return bits, draw(hnp.arrays(np.int8, shape, elements=st.integers(-limit, limit - 1)))


@given(signs)
def test_signs_round_trip(values):
    packed = pack_signs(values)
    assert packed.shape == (values.shape[0], -(-values.shape[1] // 8))
    assert np.array_equal(unpack_signs(packed, values.shape[1]), values)


@given(coded())
def test_planes_round_trip(case):
    bits, codes = case
    packed = pack_planes(codes, bits)
    assert packed.shape == (codes.shape[0], bits, -(-codes.shape[1] // 8))
    assert np.array_equal(unpack_planes(packed, codes.shape[1]), codes)


def test_column_k_is_bit_k_mod_8_of_byte_k_div_8():
    x = np.full((1, 11), -1.0, np.float32)
    x[0, [0, 3, 9]] = 0.5
    assert pack_signs(x).tolist() == [[0b00001001, 0b00000010]]


def test_zero_counts_as_minus_one():
    x = np.array([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf], np.float32)
    assert unpack_signs(pack_signs(x), 6).tolist() == [-1, -1, 1, -1, 1, -1]


def test_the_last_plane_counts_negative():
    assert plane_weights(4).tolist() == [1, 2, 4, -8]
    assert pack_planes(np.array([[-1]], np.int8), 4).tolist() == [[[1], [1], [1], [1]]]
    assert pack_planes(np.array([[-8]], np.int8), 4).tolist() == [[[0], [0], [0], [1]]]


@given(signs, st.data())
def test_products_of_signs(w, data):
    x = data.draw(hnp.arrays(np.int8, (3, w.shape[1]), elements=st.sampled_from([-1, 1])))
    expected = x.astype(np.int32) @ w.T.astype(np.int32)
    assert np.array_equal(binary_matmul(pack_signs(x), pack_signs(w), w.shape[1]), expected)


@given(coded(), st.data())
def test_bit_serial_products(case, data):
    bits, x = case
    columns = x.shape[1]
    w = data.draw(hnp.arrays(np.int8, (3, columns), elements=st.integers(-1, 1)))
    expected = x.astype(np.int32) @ w.T.astype(np.int32)
    plus, minus = pack_signs(w), pack_signs(-w)
    found = ternary_bit_serial_matmul(pack_planes(x, bits), plus, minus, columns)
    assert np.array_equal(found, expected)
    sign = np.where(x > 0, 1, -1)
    found = ternary_bit_serial_matmul(pack_signs(x), plus, minus, columns)
    assert np.array_equal(found, sign @ w.T.astype(np.int32))
    binary = np.where(w > 0, 1, -1)
    found = binary_bit_serial_matmul(pack_planes(x, bits), plus, columns)
    assert np.array_equal(found, x.astype(np.int32) @ binary.T)


def test_bits_beyond_the_last_column_do_not_count():
    x, w = np.array([[0b10101]], np.uint8), np.array([[0b11100]], np.uint8)
    dirty = np.uint8(0b11100000)
    assert binary_matmul(x | dirty, w, 5).tolist() == binary_matmul(x, w, 5).tolist() == [[1]]
    planes = np.array([[[0b1], [0b10]]], np.uint8)
    expected = ternary_bit_serial_matmul(planes, x, ~x & 31, 5)
    assert np.array_equal(ternary_bit_serial_matmul(planes | dirty, x | dirty, ~x & 31, 5), expected)


BYTES = np.zeros((2, 3), np.uint8)
PLANES = np.zeros((2, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_signs(np.float32(1)), "single number"),
        (lambda: pack_signs(np.array([1, np.nan], np.float32)), "NaN"),
        (lambda: unpack_signs(BYTES, 25), r"expected uint8 \(..., 4\) for 25 columns"),
        (lambda: unpack_signs(BYTES, 16), "for 16 columns"),
        (lambda: unpack_signs(BYTES, 0), "for 0 columns"),
        (lambda: unpack_signs(BYTES.astype(np.int8), 24), "int8"),
        (lambda: pack_planes(np.zeros((2, 3), np.int16), 4), "int16"),
        (lambda: pack_planes(np.full((2, 3), 8, np.int8), 4), r"outside -8\.\.7"),
        (lambda: pack_planes(np.full((2, 3), -9, np.int8), 4), r"outside -8\.\.7"),
        (lambda: pack_planes(np.zeros((2, 3), np.int8), 1), "pack_signs"),
        (lambda: pack_planes(np.zeros((2, 3), np.int8), 9), "2 to 8"),
        (lambda: unpack_planes(np.zeros((1, 1, 3), np.uint8), 24), "1 bits"),
        (lambda: unpack_planes(np.zeros(3, np.uint8), 24), "planes, bytes"),
        (lambda: binary_matmul(PLANES, BYTES, 24), "expected \\(rows, bytes\\)"),
        (lambda: binary_bit_serial_matmul(BYTES, BYTES, 24), "tokens, bits, bytes"),
        (lambda: ternary_bit_serial_matmul(BYTES, BYTES | 1, BYTES | 1, 24), "plus and in minus"),
        (lambda: ternary_bit_serial_matmul(BYTES, BYTES, BYTES[:1], 24), r"\(1, 3\)"),
    ],
)
def test_wrong_arrays_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
