import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet.quantize.activations import quantize_int8


def test_one_scale_a_token_and_ties_to_even():
    x = np.array([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    codes, scale = quantize_int8(x)
    assert codes.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale[0, 0] == 1.0
    assert scale[1, 0] == np.float32(127) / np.float32(1e-5)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_error_is_at_most_half_a_step(x):
    codes, scale = quantize_int8(x)
    assert codes.shape == x.shape
    assert scale.shape == (*x.shape[:-1], 1)
    step = 1 / scale.astype(np.float64)
    assert (np.abs(codes / scale.astype(np.float64) - x) <= 0.5001 * step + 1e-30).all()


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_token_does_not_see_its_company(tokens, seed):
    x = np.random.default_rng(seed).standard_normal((tokens, 7), dtype=np.float32)
    codes, scale = quantize_int8(x)
    for i in range(tokens):
        alone, its_scale = quantize_int8(x[i])
        assert np.array_equal(alone, codes[i])
        assert its_scale == scale[i]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_int8(np.array([1.0, bad], dtype=np.float32))


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_no_values_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        quantize_int8(np.ones(shape, dtype=np.float32))
