"""Products of one-bit values on every instruction set against their NumPy definition, integers with `==`."""

import numpy as np
import pytest

from bitnet import binary
from bitnet.quantize import binary as definition

# (tokens, rows, columns): one of each, nothing that divides by 8, 32 or 256, and just around them
SHAPES = [
    (1, 1, 1),
    (1, 1, 7),
    (2, 3, 8),
    (1, 17, 63),
    (9, 16, 64),
    (5, 33, 257),
    (3, 15, 511),
    (70, 20, 100),
]


def random_signs(random, shape):
    return random.choice(np.array([-1, 1], np.int8), shape)


@pytest.fixture
def random():
    return np.random.default_rng(1905)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_signs(isa, threads, shape, random):
    tokens, rows, columns = shape
    w = definition.pack_signs(random_signs(random, (rows, columns)))
    x = random.normal(size=(tokens, columns)).astype(np.float32)
    packed = binary.pack_signs(x, threads=threads, isa=isa)
    assert np.array_equal(packed, definition.pack_signs(x))
    found = binary.BinaryMatrix(w, columns, threads=threads, isa=isa).multiply_signs(packed)
    assert found.dtype == np.int32
    assert np.array_equal(found, definition.binary_matmul(packed, w, columns))


@pytest.mark.parametrize("shape", SHAPES)
def test_ternary_weights(isa, shape, random):
    tokens, rows, columns = shape
    w = random.integers(-1, 2, (rows, columns))
    plus, minus = definition.pack_signs(w), definition.pack_signs(-w)
    matrix = binary.TernaryMatrix(plus, minus, columns, threads=2, isa=isa)
    signs = definition.pack_signs(random_signs(random, (tokens, columns)))
    expected = definition.ternary_bit_serial_matmul(signs, plus, minus, columns)
    assert np.array_equal(matrix.multiply_signs(signs), expected)
    for bits in range(2, 9):
        limit = 1 << (bits - 1)
        codes = random.integers(-limit, limit, (tokens, columns)).astype(np.int8)
        planes = binary.pack_planes(codes, bits, threads=2, isa=isa)
        assert np.array_equal(planes, definition.pack_planes(codes, bits))
        expected = definition.ternary_bit_serial_matmul(planes, plus, minus, columns)
        assert np.array_equal(matrix.multiply_planes(planes), expected)


@pytest.mark.parametrize("lowest", [-128, -127])  # tables cannot hold the sums of -128
@pytest.mark.parametrize("shape", [*SHAPES, (33, 128, 300), (50, 1300, 64), (32, 200, 2500), (12, 129, 900)])
def test_binary_weights_and_int8(isa, shape, lowest, random):
    tokens, rows, columns = shape
    w = random_signs(random, (rows, columns))
    codes = random.integers(lowest, 128, (tokens, columns)).astype(np.int8)
    w[0], codes[0] = -1, lowest  # the largest sums
    packed = definition.pack_signs(w)
    matrix = binary.BinaryMatrix(packed, columns, threads=2, isa=isa)
    expected = codes.astype(np.int32) @ w.T.astype(np.int32)
    assert np.array_equal(matrix.multiply_int8(codes), expected)
    planes = definition.pack_planes(codes, 8)
    assert np.array_equal(matrix.multiply_planes(planes), expected)
    if tokens * rows < 1000:
        assert np.array_equal(definition.binary_bit_serial_matmul(planes, packed, columns), expected)


@pytest.mark.parametrize("columns", [2**22 - 129, 2**22 - 127])  # on both sides of what int8's kernels sum
def test_more_columns_than_the_kernels_of_int8_take(isa, columns):
    if isa == "scalar":
        columns //= 64  # which has no such limit and is slow
    codes = np.full((1, columns), -128, np.int8)
    bits = np.zeros((1, -(-columns // 8)), np.uint8)
    assert binary.BinaryMatrix(bits, columns, threads=2, isa=isa).multiply_int8(codes) == 128 * columns
    assert binary.BinaryMatrix(~bits, columns, threads=2, isa=isa).multiply_int8(codes) == -128 * columns


def test_one_code_of_minus_128_keeps_the_other_tokens_exact(isa, random):
    w = random_signs(random, (200, 256))
    codes = random.integers(-127, 128, (70, 256)).astype(np.int8)
    codes[40, 255] = -128  # blocks of 32 tokens before and behind its own go through tables
    matrix = binary.BinaryMatrix(definition.pack_signs(w), 256, threads=2, isa=isa)
    assert np.array_equal(matrix.multiply_int8(codes), codes.astype(np.int32) @ w.T.astype(np.int32))


def test_bits_beyond_the_last_column_do_not_count(isa, random):
    columns, dirty = 61, np.uint8(0b11100000)
    w = definition.pack_signs(random_signs(random, (5, columns)))
    x = definition.pack_signs(random_signs(random, (3, columns)))
    expected = definition.binary_matmul(x, w, columns)
    x[:, -1] |= dirty
    plus, minus = w.copy(), ~w
    w[:, -1] |= dirty
    assert np.array_equal(binary.BinaryMatrix(w, columns, isa=isa).multiply_signs(x), expected)
    plus[:, -1] |= dirty  # where minus is set too, but no weight stands
    assert np.array_equal(binary.TernaryMatrix(plus, minus, columns, isa=isa).multiply_signs(x), expected)


def test_matrices_share_threads_and_scratch(isa, random):
    sizes = [(40, 2000), (7, 30), (300, 500)]
    weights = [random_signs(random, size) for size in sizes]
    matrices = [
        binary.BinaryMatrix(definition.pack_signs(w), w.shape[1], threads=2, isa=isa) for w in weights
    ]
    for tokens in (40, 1, 25):
        for w, matrix in zip(weights, matrices, strict=True):
            codes = random.integers(-128, 128, (tokens, w.shape[1])).astype(np.int8)
            expected = codes.astype(np.int32) @ w.T.astype(np.int32)
            assert np.array_equal(matrix.multiply_int8(codes), expected)
