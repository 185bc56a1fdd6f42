import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet.quantize.packing import count_codes, find_invalid, pack_2bit, unpack_2bit

shapes = st.tuples(st.integers(1, 9).map(lambda rows: 4 * rows), st.integers(1, 33))
ternary = shapes.flatmap(lambda shape: hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
any_bytes = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 33)))


@given(ternary)
def test_round_trip(codes):
    packed = pack_2bit(codes)
    assert packed.shape == (codes.shape[0] // 4, codes.shape[1])
    assert np.array_equal(unpack_2bit(packed), codes)


@given(ternary, st.data())
def test_each_code_stands_where_the_layout_says(codes, data):
    row = data.draw(st.integers(0, codes.shape[0] - 1))
    column = data.draw(st.integers(0, codes.shape[1] - 1))
    quarter = codes.shape[0] // 4
    byte = pack_2bit(codes)[row % quarter, column]
    assert (byte >> (2 * (row // quarter))) & 3 == codes[row, column] + 1


@given(ternary)
def test_counts(codes):
    assert count_codes(pack_2bit(codes)) == tuple(int((codes == value).sum()) for value in (-1, 0, 1, 2))


@given(any_bytes)
def test_the_first_invalid_byte_is_found(packed):
    has_three = np.zeros(packed.shape, dtype=bool)
    for shift in (0, 2, 4, 6):
        has_three |= (packed >> shift) & 3 == 3
    if has_three.any():
        assert find_invalid(packed) == tuple(np.argwhere(has_three)[0])
        assert count_codes(packed)[3] > 0
        with pytest.raises(ValueError, match="invalid code 3"):
            unpack_2bit(packed)
    else:
        assert find_invalid(packed) is None
        assert np.array_equal(pack_2bit(unpack_2bit(packed)), packed)


@given(ternary, st.data())
def test_codes_beyond_ternary_are_refused(codes, data):
    row = data.draw(st.integers(0, codes.shape[0] - 1))
    codes[row, 0] = data.draw(st.integers(-128, 127).filter(lambda value: abs(value) > 1))
    with pytest.raises(ValueError, match="outside -1"):
        pack_2bit(codes)


def test_invalid_is_found_beyond_the_first_block():
    packed = np.zeros((3, 1 << 18), dtype=np.uint8)
    packed[2, 12345] = 0b00110000
    assert find_invalid(packed) == (2, 12345)
    assert count_codes(packed)[3] == 1


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((6, 2), np.int8), "multiple of 4"),
        (np.zeros(4, np.int8), "multiple of 4"),
        (np.zeros((4, 2), np.int64), "int8"),
        (np.zeros((4, 2), np.uint8), "int8"),
    ],
)
def test_wrong_arrays_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        pack_2bit(codes)


def test_only_byte_matrices_are_unpacked():
    with pytest.raises(ValueError, match="uint8 matrix"):
        unpack_2bit(np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="uint8 matrix"):
        unpack_2bit(np.zeros((1, 4), np.int8))
