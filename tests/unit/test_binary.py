"""What the fast products of one-bit values refuse; what they compute is in tests/parity/test_binary.py."""

import numpy as np
import pytest

from bitnet.binary import BinaryMatrix, TernaryMatrix, pack_planes, pack_signs
from bitnet.errors import InputError

BYTES = np.zeros((2, 3), np.uint8)
CODES = np.zeros((2, 24), np.int8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_signs(np.zeros((2, 3))), "x is float64"),
        (lambda: pack_signs(np.zeros(3, np.float32)), r"shape \(3,\)"),
        (lambda: pack_signs([[1.0]]), "x is list"),
        (lambda: pack_signs(np.array([[1, np.nan]], np.float32)), "x holds NaN"),
        (lambda: pack_signs(np.zeros((1, 3), np.float32), isa="mmx"), "mmx"),
        (lambda: pack_signs(np.zeros((1, 3), np.float32), threads=0), "threads"),
        (lambda: pack_signs(np.zeros((1, 3), np.float32), threads=-1), "threads"),
        (lambda: pack_planes(CODES, 1), "1 bits"),
        (lambda: pack_planes(CODES, 9), "9 bits"),
        (lambda: pack_planes(CODES + np.int8(8), 4), "4 bits: a code needs more"),
        (lambda: pack_planes(CODES.astype(np.int32), 4), "codes is int32"),
        (lambda: BinaryMatrix(BYTES, 25), r"\(2, 3\) with 25 columns"),
        (lambda: BinaryMatrix(BYTES, 16), "16 columns"),
        (lambda: BinaryMatrix(BYTES, 0), "0 columns"),
        (lambda: BinaryMatrix(BYTES, -8), "-8 columns"),
        (lambda: BinaryMatrix(np.zeros((1, 1 << 21), np.uint8), 1 << 24), "2\\^24"),
        (lambda: BinaryMatrix(BYTES.astype(bool), 24), "packed is bool"),
        (lambda: TernaryMatrix(BYTES, BYTES[:1], 24), r"\(1, 3\)"),
        (lambda: TernaryMatrix(BYTES | 4, BYTES | 6, 24), "plus and in minus"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_signs(np.zeros((1, 4), np.uint8)), "rows of 3 bytes"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_signs(np.zeros((1, 2, 3), np.uint8)), r"\(1, 2, 3\)"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_signs(np.zeros((1, 3), np.int8)), "int8"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_signs([[1, 2, 3]]), "x is list"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_planes([[[1, 2, 3]]]), "x is list"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_planes(BYTES), r"\(tokens, bits, bytes\)"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_planes(np.zeros((1, 1, 3), np.uint8)), "1 planes"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_planes(np.zeros((1, 9, 3), np.uint8)), "9 planes"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_int8(CODES[:, :23]), "23 columns"),
        (lambda: BinaryMatrix(BYTES, 24).multiply_int8(CODES.view(np.uint8)), "uint8"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_nothing_times_something_is_nothing():
    assert BinaryMatrix(BYTES, 24).multiply_signs(BYTES[:0]).shape == (0, 2)
    assert BinaryMatrix(BYTES, 24).multiply_int8(CODES[:0]).shape == (0, 2)
    assert BinaryMatrix(BYTES[:0], 24).multiply_signs(BYTES).shape == (2, 0)


def test_arrays_that_are_not_contiguous_are_read_right():
    x = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    bits = pack_signs(x.T)
    assert np.array_equal(bits, pack_signs(np.ascontiguousarray(x.T)))
    both = np.stack([bits, bits], axis=2)
    assert np.array_equal(BinaryMatrix(both[:, :, 0], 24).multiply_signs(bits).diagonal(), [24, 24])
