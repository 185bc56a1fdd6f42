import numpy as np
import pytest

from bitnet.formats.tensor import Tensor


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_widening_is_exact(dtype):
    values = np.array([[1.5, -0.25, 0.0, 2.0**-10]], dtype=np.float32)
    stored = values.astype(np.float16) if dtype == "F16" else values
    tensor = Tensor.of(stored, "BF16" if dtype == "BF16" else None)
    assert tensor.dtype == dtype
    assert tensor.shape == (1, 4)
    wide = tensor.float32()
    assert wide.dtype == np.float32
    assert np.array_equal(wide, values)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("place", [0, 131071, 131072, 199999])
def test_non_finite_values_are_found(dtype, bad, place):
    values = np.full(200000, -3.0, dtype=np.float16 if dtype == "F16" else np.float32)
    largest = 6e4 if dtype == "F16" else 3.3e38
    values[7] = -largest
    clean = Tensor.of(values, "BF16" if dtype == "BF16" else None)
    assert clean.find_non_finite() is None
    values[place] = bad
    assert Tensor.of(values, "BF16" if dtype == "BF16" else None).find_non_finite() == place


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rows_and_size(dtype):
    values = np.arange(12, dtype=np.float16 if dtype == "F16" else np.float32).reshape(4, 3)
    tensor = Tensor.of(values, "BF16" if dtype == "BF16" else None)
    assert tensor.nbytes == tensor.data.nbytes
    part = tensor.rows(1, 3)
    assert part.shape == (2, 3)
    assert np.array_equal(part.float32(), values[1:3])


def test_what_bfloat16_holds():
    values = np.full((700, 300), 1.0078125, np.float32)  # seven bits behind the point
    assert Tensor.of(values).fits_bfloat16()
    assert Tensor.of(values.astype(np.float16)).fits_bfloat16()
    assert Tensor.of(values, "BF16").fits_bfloat16()
    values[699, 299] = 1.00390625
    assert not Tensor.of(values).fits_bfloat16()
    assert not Tensor.of(values.astype(np.float16)).fits_bfloat16()
    assert not Tensor.of(values.reshape(-1)).fits_bfloat16()
