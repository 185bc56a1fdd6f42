"""Masters for given codes: quantising them gives back every code and the scale."""

import numpy as np
import pytest

from bitnet.errors import UnsupportedError
from bitnet.formats.masters import master_blocks
from bitnet.quantize.bfloat16 import widen
from bitnet.quantize.packing import pack_2bit
from bitnet.quantize.weights import ternarize


def masters(codes, scale):
    bits = np.concatenate(list(master_blocks(pack_2bit(codes), np.float32(scale), "x")))
    return widen(bits).reshape(codes.shape)


@pytest.mark.parametrize("shape", [(4, 1), (4, 7), (64, 33), (1024, 1100)])
@pytest.mark.parametrize("scale", [1.21875, 2.1631613, 1e-4, 1e30])
@pytest.mark.parametrize("density", [0.05, 0.69, 1.0])
def test_quantising_gives_codes_and_scale_back(shape, scale, density):
    random = np.random.default_rng(0)
    signs = random.choice(np.array([-1, 1], np.int8), shape)
    codes = (signs * (random.random(shape) < density)).astype(np.int8)
    codes[0, 0] = 1
    found, found_scale = ternarize(masters(codes, scale))
    np.testing.assert_array_equal(found, codes)
    # one element more or less of the upper kind is the finest step there is
    assert found_scale == pytest.approx(np.float32(scale), rel=max(1.2e-7, 2**-8 / np.count_nonzero(codes)))


def test_a_matrix_of_zeros():
    codes = np.zeros((8, 5), np.int8)
    assert not masters(codes, 3).any()
    assert not ternarize(masters(codes, 3))[0].any()


@pytest.mark.parametrize("scale", [1e-6, 3e38])
def test_scales_no_quantiser_gives(scale):
    with pytest.raises(UnsupportedError, match=r"x: its scale .*packed"):
        masters(np.ones((4, 4), np.int8), scale)
