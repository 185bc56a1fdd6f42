"""Block types: bytes against recorded ones, against element-by-element twins, and against the gguf "
"package."""

import numpy as np
import pytest

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.gguf import float_blocks, ternary_blocks
from bitnet.formats.gguf.block_types import I2_S, Q4_K, Q6_K, Q8_0, TERNARY, TQ1_0, TQ2_0
from bitnet.quantize.packing import pack_2bit, unpack_2bit
from bitnet.quantize.weights import MIN_SCALE

by_name = pytest.mark.parametrize("kind", TERNARY, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "ops_gguf.npz")


def encode(kind, codes, scale=1.0):
    return np.concatenate(list(ternary_blocks.from_packed(kind, pack_2bit(codes), np.float32(scale))))


def random_codes(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns), dtype=np.int8)


def element(kind, raw, index):
    """The stored value of one element, straight from the format's description."""
    block, j = divmod(index, kind.elements)
    at = raw[block * kind.bytes :][: kind.bytes]
    if kind is I2_S:
        return at[j % 32] >> (6 - 2 * (j // 32)) & 3
    if kind is TQ2_0:
        half, m, n = j // 128, j % 32, j % 128 // 32
        return at[32 * half + m] >> (2 * n) & 3
    if j < 160:
        byte, n = at[j % 32], j // 32
    elif j < 240:
        byte, n = at[32 + (j - 160) % 16], (j - 160) // 16
    else:
        byte, n = at[48 + (j - 240) % 4], (j - 240) // 4
    return (int(byte) * 3**n % 256 * 3) >> 8


@by_name
def test_recorded_bytes_both_ways(recorded, kind):
    raw, codes = recorded[kind.name.lower()].reshape(-1), recorded["codes"]
    np.testing.assert_array_equal(encode(kind, codes, recorded["scale"]), raw)
    np.testing.assert_array_equal(unpack_2bit(ternary_blocks.to_packed(kind, raw, *codes.shape)), codes)
    assert ternary_blocks.read_scale(kind, raw, "x") == recorded["scale"]


def test_a_block_of_the_official_file(recorded):
    """32 bytes of codes and the scale behind them, from bitnet.cpp's file of 2B4T."""
    block = recorded["real_i2s_block"]
    raw = np.concatenate([block, np.full(28, 0xAB, np.uint8)])  # the tail's rest may be anything
    assert ternary_blocks.read_scale(I2_S, raw, "x") == np.float32(2.1631613)
    packed = ternary_blocks.to_packed(I2_S, raw, 4, 32)
    codes = unpack_2bit(packed)
    assert 0.1 < (codes == 0).mean() < 0.6
    rewritten = np.concatenate(list(ternary_blocks.from_packed(I2_S, packed, np.float32(2.1631613))))
    np.testing.assert_array_equal(rewritten[:36], block)


@by_name
@pytest.mark.parametrize("shape", [(4, 256), (12, 768), (2048, 512)])
def test_against_the_plain_twin(kind, shape):
    codes = random_codes(*shape)
    raw = encode(kind, codes, 0.5)
    assert raw.size == kind.size(shape, "x")
    np.testing.assert_array_equal(unpack_2bit(ternary_blocks.to_packed(kind, raw, *shape)), codes)
    for index in np.random.default_rng(1).integers(0, codes.size, 300):
        assert element(kind, raw, int(index)) == codes.reshape(-1)[index] + 1


@pytest.mark.parametrize("shape", [(128, 3), (4, 32), (8, 400), (64, 86)])
def test_i2_s_rows_of_any_width(shape):
    """Blocks run across rows, and across the quarters of the packed layout."""
    codes = random_codes(*shape)
    raw = encode(I2_S, codes)
    np.testing.assert_array_equal(unpack_2bit(ternary_blocks.to_packed(I2_S, raw, *shape)), codes)


@pytest.mark.parametrize("kind", [TQ1_0, TQ2_0], ids=lambda kind: kind.name)
def test_the_gguf_package_dequantises_the_same(kind):
    gguf = pytest.importorskip("gguf")
    codes = random_codes(8, 512)
    raw = encode(kind, codes, 1.75)
    theirs = gguf.quants.dequantize(raw.reshape(8, -1), gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(theirs, codes * np.float32(1.75))
    exact = (codes * np.float32(1.75)).astype(np.float32)
    quantised = gguf.quants.quantize(exact, gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(quantised.reshape(-1), raw)


@pytest.mark.parametrize("kind", [TQ1_0, TQ2_0], ids=lambda kind: kind.name)
class TestScales:
    def test_float16(self, kind):
        scale = np.float32(1.2345678)
        assert ternary_blocks.stored_scale(kind, scale, "x") == np.float16(scale)
        assert ternary_blocks.stored_scale(I2_S, scale, "x") == scale

    @pytest.mark.parametrize("scale", [1e-9, 1e6])
    def test_beyond_float16(self, kind, scale):
        with pytest.raises(UnsupportedError, match="I2_S"):
            ternary_blocks.stored_scale(kind, np.float32(scale), "x")

    def test_blocks_of_zeros_may_have_none(self, kind):
        codes = random_codes(4, 256)
        codes[1] = 0
        raw = encode(kind, codes, 2.0).reshape(4, -1)
        raw[1, -2:] = 0
        assert ternary_blocks.read_scale(kind, raw.reshape(-1), "x") == 2.0
        raw[:, -2:] = 0
        with pytest.raises(FormatError, match="scale 0, but codes"):
            ternary_blocks.read_scale(kind, raw.reshape(-1), "x")

    def test_a_matrix_of_zeros(self, kind):
        raw = encode(kind, np.zeros((4, 256), np.int8), 1.0).reshape(4, -1)
        raw[:, -2:] = 0
        assert ternary_blocks.read_scale(kind, raw.reshape(-1), "x") == np.float32(MIN_SCALE)

    def test_different_scales(self, kind):
        raw = encode(kind, random_codes(4, 256), 2.0).reshape(4, -1)
        raw[2, -2:] = np.array([3.0], np.float16).view(np.uint8)
        with pytest.raises(UnsupportedError, match=r"different scales \(2\.0, 3\.0\)"):
            ternary_blocks.read_scale(kind, raw.reshape(-1), "x")

    @pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
    def test_impossible(self, kind, scale):
        raw = encode(kind, random_codes(4, 256), 2.0).reshape(4, -1)
        raw[:, -2:] = np.array([scale], np.float16).view(np.uint8)
        with pytest.raises(FormatError, match="positive number"):
            ternary_blocks.read_scale(kind, raw.reshape(-1), "x")


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.0])
def test_impossible_scale_of_i2_s(scale):
    with pytest.raises(FormatError, match="positive number"):
        ternary_blocks.read_scale(I2_S, encode(I2_S, random_codes(4, 32), scale), "x")


@pytest.mark.parametrize("kind", [Q8_0, Q4_K, Q6_K], ids=lambda kind: kind.name)
def test_any_bytes_decode_as_the_gguf_package_does(kind):
    gguf = pytest.importorskip("gguf")
    blocks = np.random.default_rng(0).integers(0, 256, (200, kind.bytes), np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        ours = float_blocks.decode(kind, blocks)
        theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(ours, theirs)
    finite = np.isfinite(float_blocks.scales(kind, blocks)).all(axis=1)
    np.testing.assert_array_equal(np.isfinite(ours).all(axis=1)[finite], True)
    assert not finite.all()


@pytest.fixture(scope="module")
def embedding():
    random = np.random.default_rng(3)
    values = random.normal(size=(64, 256)).astype(np.float32) * random.uniform(0.001, 3, (64, 1)).astype(
        np.float32
    )
    values[5] = 0
    values[6] = 1e-30
    values[7, 3] = 500
    values[8] *= 1e-6
    return values


def relative_error(kind, values, blocks):
    decoded = float_blocks.decode(kind, blocks).reshape(values.shape)
    return np.sqrt(((decoded - values) ** 2).sum(axis=1) / np.maximum((values**2).sum(axis=1), 1e-30))


@pytest.mark.parametrize(("kind", "most"), [(Q8_0, 0.008), (Q6_K, 0.02)], ids=["Q8_0", "Q6_K"])
def test_encoding_is_near(embedding, kind, most):
    blocks = float_blocks.encode(kind, embedding.reshape(-1, kind.elements))
    assert blocks.shape == (embedding.size // kind.elements, kind.bytes)
    error = relative_error(kind, embedding, blocks)
    ordinary = np.delete(np.arange(64), [5, 6, 7, 8])
    assert error[ordinary].max() < most
    assert (float_blocks.decode(kind, blocks).reshape(64, 256)[5:7] == 0).all()


def test_q6_k_is_about_as_near_as_its_step_allows():
    """The largest of 16 normals is 1.8 on average, so a step is 1.8 / 32 and its rounding 1.6% of the "
    "deviation."""
    rows = np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)
    error = relative_error(Q6_K, rows, float_blocks.encode(Q6_K, rows))
    assert error.mean() < 0.018


def test_q8_0_is_as_near_as_the_gguf_package(embedding):
    gguf = pytest.importorskip("gguf")
    ours = relative_error(Q8_0, embedding, float_blocks.encode(Q8_0, embedding.reshape(-1, 32)))
    theirs = gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0).reshape(-1, 34)
    assert ours[:5].mean() <= relative_error(Q8_0, embedding, theirs)[:5].mean() * 1.001


@pytest.mark.parametrize("kind", [Q8_0, Q6_K], ids=lambda kind: kind.name)
def test_values_on_the_grid_are_exact(kind):
    random = np.random.default_rng(2)
    if kind is Q8_0:
        whole = random.integers(-127, 128, (10, 32)).astype(np.float32)
        whole[:, 0] = 127
    else:
        whole = random.integers(-32, 32, (10, 256)).astype(np.float32)
        whole[:, ::16] = -32
    blocks = float_blocks.encode(kind, whole * np.float32(0.25))
    np.testing.assert_array_equal(float_blocks.decode(kind, blocks), whole * np.float32(0.25))
